"""Scoring again, for comparison: each image has one score of the new model, and its report stays as it is."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import select, text, update

from classifier.outcome import Decision, Prediction, StillDecoding
from db import queue, rescores, stock
from db.models import Instance, Job, Rescore, Study
from db.queue import MAX_ATTEMPTS, Kind
from db.rescores import Ordered, Wanted
from db.session import Database
from pacs_node.scoring.rescore import RescoreStage
from pacs_node.scoring.stage import ScoreStage
from pacs_node.worker import Worker
from tests.conftest import radiograph, uid
from tests.helpers import workbench
from tests.helpers.commands import command, configure
from tests.helpers.databases import only_sqlite
from tests.helpers.workbench import Bench, Viewer

bench = workbench.bench
OTHER = "6f" * 32


class Sceptic(Viewer):
    """Another model: it finds everything negative."""

    def attempt(self, sources: Sequence[Path]) -> list[Prediction | OSError | StillDecoding]:
        return [
            replace(one, probability=0.1, decision=Decision.NEGATIVE)
            if isinstance(one, Prediction) and one.probability is not None
            else one
            for one in super().attempt(sources)
        ]


def stage(bench: Bench, sha256: str = OTHER) -> RescoreStage:
    model = bench.register(sha256)
    return RescoreStage(bench.database, bench.spool, Sceptic(), model, 16)


def order(bench: Bench, sha256: str = OTHER, **wanted: Any) -> Ordered:
    total = Ordered()
    with bench.database.write() as session:
        for batch in rescores.batches(session):
            total += rescores.order(session, Wanted(**wanted), sha256, batch)
    return total


def scores(bench: Bench) -> list[tuple[str, str, int, int]]:
    asked = (
        "SELECT decision, model_sha256, is_newest, is_rescore FROM scores ORDER BY instance_id, is_rescore"
    )
    with bench.database.read() as session:
        return [(one[0], one[1][:2], one[2], one[3]) for one in session.execute(text(asked))]


def reported(bench: Bench) -> None:
    """Let two images of a study be received, scored and reported."""
    bench.receive(radiograph(number=1))
    bench.receive(radiograph(number=2, view="LL"))
    bench.score()
    bench.hurry()
    bench.report()


def everything_else(bench: Bench) -> dict[str, list[Any]]:
    """Return all rows that say what a study's answer is, and what becomes of its report."""
    tables = ("results", "studies", "ledger", "deliveries", "report", "report_image", "score")
    with bench.database.read() as session:
        rows: dict[str, list[Any]] = {
            name: sorted(map(str, session.execute(text(f"SELECT * FROM {name}")).all())) for name in tables
        }
        jobs = select(Job.kind, Job.ref, Job.state, Job.visible_at).where(Job.kind != Kind.RESCORE)
        rows["job"] = sorted(map(str, session.execute(jobs)))
    return rows


def test_another_models_scores_stand_beside_and_nothing_else_changes(bench: Bench) -> None:
    reported(bench)
    before = everything_else(bench)
    again = stage(bench)
    assert order(bench) == Ordered(2, 0, 0)
    bench.work(again)
    bench.report()
    assert everything_else(bench) == before
    assert scores(bench) == [
        ("positive", "5e", 1, 0),
        ("negative", "6f", 0, 1),
        ("not_scored", "5e", 1, 0),
        ("not_scored", "6f", 0, 1),
    ]
    assert bench.states(Kind.RESCORE) == ["done", "done"]
    assert order(bench) == Ordered(0, 2, 0)  # a second order finds nothing to do
    assert order(bench, "5e" * 32) == Ordered(0, 2, 0)  # nor does one for the model that scored first


def test_an_order_counts_only_images_that_have_a_score_and_a_file(bench: Bench) -> None:
    reported(bench)
    bench.receive(radiograph(study="2"))
    assert order(bench) == Ordered(2, 0, 0)
    with bench.database.write() as session:
        session.execute(update(Instance).where(Instance.id == 1).values(removed_at=datetime.now(UTC)))
    assert order(bench) == Ordered(0, 0, 1)
    bench.score()
    assert order(bench, study=uid("2", "study")) == Ordered(1, 0, 0)
    assert order(bench, "7a" * 32, since=datetime.now(UTC) + timedelta(days=1)) == Ordered(0, 0, 0)


def test_an_image_that_came_again_corrected_is_scored_once_more_and_results_of_programs_are_not(
    bench: Bench,
) -> None:
    bench.receive(radiograph())
    bench.receive(radiograph(PatientName="Doe^Corrected"))
    bench.receive(radiograph(number=2))
    bench.score()
    own = "UPDATE score SET reason = 'OWN_RESULT', probability = NULL, decision = 'not_scored'"
    with bench.database.write() as session:
        session.execute(text(f"{own} WHERE instance_id = 3"))
    assert order(bench) == Ordered(1, 0, 0)
    bench.work(stage(bench))
    with bench.database.read() as session:
        assert list(session.scalars(select(Rescore.instance_id))) == [2]


def test_a_process_with_another_model_leaves_the_order_alone(bench: Bench) -> None:
    reported(bench)
    order(bench)
    bench.work(stage(bench, "5e" * 32))
    assert bench.states(Kind.RESCORE) == ["ready", "ready"]
    bench.work(stage(bench))
    assert bench.states(Kind.RESCORE) == ["done", "done"]


def test_a_worker_that_dies_or_loses_its_lease_doubles_nothing(bench: Bench) -> None:
    reported(bench)
    again = stage(bench)
    order(bench)
    with bench.database.write() as session:
        claimed = queue.claim(session, Kind.RESCORE, again.lane, limit=8, lease_seconds=60)
    assert len(claimed.jobs) == 2
    assert order(bench) == Ordered(0, 0, 0)  # an order does not take jobs away from who works at them
    bench.hurry()  # the worker died: its lease ends
    (lost,) = again.run(claimed.jobs, lambda: True)
    bench.work(again)
    assert len(scores(bench)) == 4
    worker = Worker(bench.database, again, 0.01, 60)
    worker._settle(claimed.token, lost)  # it had only seemed dead
    assert len(scores(bench)) == 4


def test_an_image_that_kills_every_worker_fails_visibly_and_can_be_tried_again(bench: Bench) -> None:
    reported(bench)
    order(bench, study=uid("1", "study"))
    with bench.database.write() as session:
        session.execute(update(Job).where(Job.kind == Kind.RESCORE).values(attempts=MAX_ATTEMPTS))
    before = everything_else(bench)
    bench.work(stage(bench))
    assert [(one.kind, one.lane) for one in bench.failures()] == [("rescore", "")] * 2
    assert everything_else(bench) == before
    assert bench.retry() == 2
    bench.work(stage(bench))
    assert len(scores(bench)) == 4


def test_new_images_come_first(bench: Bench) -> None:
    reported(bench)
    order(bench)
    first = ScoreStage(bench.database, bench.spool, bench.viewer, bench.model, 16)
    worker = Worker(bench.database, first, 0.01, 60, idle_stage=stage(bench))
    bench.receive(radiograph(study="2"))
    assert worker.work_once()
    assert (bench.states(Kind.SCORE), bench.states(Kind.RESCORE)) == (["done"] * 3, ["ready"] * 2)
    assert worker.work_once()
    assert bench.states(Kind.RESCORE) == ["done"] * 2
    assert not worker.work_once()


def test_retention_waits_for_no_comparison(bench: Bench) -> None:
    reported(bench)
    bench.deliver_all()
    order(bench)
    now = datetime.now(UTC)
    later = now + timedelta(days=1)
    with bench.database.write() as session:
        session.execute(update(Study).values(last_received_at=now - timedelta(days=2)))
        (study,) = stock.spent(session, later, 10)
        assert len(stock.release(session, study, later, later)) == 2
    assert bench.states(Kind.RESCORE) == ["done", "done"]
    bench.work(stage(bench))
    assert len(scores(bench)) == 2


@only_sqlite
def test_the_command_says_what_it_ordered(database: Database, database_url: str, tmp_path: Path) -> None:
    checkpoint = tmp_path / "model.safetensors"
    checkpoint.write_bytes(b"weights")
    configure(tmp_path, database_url, 104, classifier=f'[classifier]\nmodel = "{checkpoint}"')
    bench = Bench(database, tmp_path)
    reported(bench)
    to = ("--config", tmp_path / "config.toml")
    refused = command("rescore", *to)
    assert (refused.returncode, "Say which images" in refused.stderr) == (2, True)
    unknown = command("rescore", "--study", "1.2.3", *to)
    assert (unknown.returncode, "There is no study 1.2.3" in unknown.stderr) == (2, True)
    done = command("rescore", "--all", *to)
    assert done.stdout.startswith("2 images will be scored again by the model"), done.stderr
    assert "restart it" in done.stdout
    sha256 = hashlib.sha256(b"weights").hexdigest()
    assert {job.lane for job in bench.jobs(Kind.RESCORE)} == {sha256[:32]}
    status = command("status", "--no-files", *to)
    assert "Scoring again" in status.stdout
    assert command("rescore", "--cancel", *to).stdout == "2 images will not be scored again.\n"
    assert bench.states(Kind.RESCORE) == ["done", "done"]
    bench.register(sha256)
    again = command("rescore", "--since", "1d", *to)
    assert again.stdout == "2 images will be scored again by DenseNet121-CXR 2025.06.\n"
