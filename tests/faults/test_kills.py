"""kill -9 here and there, a little of what `make faults` does at every step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from threading import Thread

import pytest
from sqlalchemy import select, update

from db import rescores
from db.models import Instance, Job, Model, Rescore, Score
from tests.faults.judge import data_set, image_of, judge, settled
from tests.faults.kills import DELIVERING, RECEIVING, REPORTING, SCORING, Point, kill_at, node
from tests.faults.senders import Dcmtk, Modality, studies
from tests.faults.world import World, wait_for


def kill_receiver_at(points: Sequence[Point], folder: Path, url: str) -> None:
    """Kill a receiver with nothing behind it, power and all, until every file is answered with Success."""
    with World(folder, url, {}, is_armed=True) as world:
        world.start("receive", SABOTAGE_POWER="1")
        senders = [Modality(world.port), Dcmtk(world.port)]
        files = []
        for number, point in enumerate(points):
            victim = world.roles["receive"]
            victim.arm(str(point))
            sent = studies(folder / "sent", 3, prefix=f"{number}-")
            files += [path for study in sent for path in study]
            sender = Thread(target=senders[number % 2].send_all, args=(sent, 1))
            sender.start()
            wait_for(lambda: victim.popen.poll() is not None, str(point))  # noqa: B023 - called at once
            assert victim.has_died
            world.start("receive", SABOTAGE_POWER="1")
            sender.join()
        with world.database.read() as session:
            rows = dict(session.execute(select(Instance.sop_instance_uid, Instance.digest)).all())
            jobs = list(session.execute(select(Job.kind, Job.ref, Job.state)))
        assert {image for sender in senders for image in sender.acknowledged} == set(map(image_of, files))
        assert rows.keys() == {uid for _, uid in map(image_of, files)}
        for path in files:
            digest = rows[image_of(path)[1]]
            kept = world.spool / "objects" / digest[:2] / f"{digest}.dcm"
            assert data_set(kept.read_bytes()) == data_set(path.read_bytes())
        assert Counter((kind, state) for kind, _, state in jobs) == {
            ("score", "ready"): len(files),
            ("report", "ready"): len(files),
        }


def test_what_a_killed_receiver_answered_with_success_survives_a_loss_of_power(
    backend: str, database_url: str, tmp_path: Path
) -> None:
    kill_receiver_at(
        RECEIVING[1::4] if backend == "sqlite" else RECEIVING[2::4], tmp_path / "node", database_url
    )


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_a_killed_worker_loses_and_doubles_nothing(database_url: str, tmp_path: Path) -> None:
    points = (SCORING[7], REPORTING[3], DELIVERING[2])
    outcome = kill_at(points, tmp_path / "node", database_url)
    assert outcome.verdict.is_good, outcome.verdict
    assert outcome.verdict.studies == 3 * len(points)


@pytest.mark.parametrize("backend", ["postgresql"], indirect=True)
def test_a_killed_worker_loses_and_doubles_nothing_on_a_server(database_url: str, tmp_path: Path) -> None:
    points = (SCORING[0], DELIVERING[4])
    outcome = kill_at(points, tmp_path / "node", database_url)
    assert outcome.verdict.is_good, outcome.verdict
    assert outcome.verdict.studies == 3 * len(points)


RESCORING = (
    "worker: claimed, before work",
    "score: decoded",
    "score: after the network",
    "rescore: row written, before commit",
    "worker: settled",
)


def order(world: World, study: str) -> None:
    """Let the images of a study be scored again by the model that the stand-in is."""
    with world.database.write() as session:
        for batch in rescores.batches(session):
            assert rescores.order(session, rescores.Wanted(study=study), "1" * 64, batch).images == 1


def test_killed_at_scoring_again_a_worker_doubles_nothing_and_changes_no_report(
    database_url: str, tmp_path: Path
) -> None:
    with node(tmp_path / "node", database_url) as (world, pacs):
        modality = Modality(world.port)
        modality.send_all(studies(tmp_path / "sent", len(RESCORING)), 1)
        assert settled(world, 90) == []
        reports = sorted(pacs.reports())
        world.roles["score"].stop()
        with world.database.write() as session:  # what scored so far was another model
            session.execute(update(Model).values(sha256="0" * 64))
            scores = session.scalars(select(Score.id)).all()
        world.start("score")
        for point, (study, _) in zip(RESCORING, sorted(modality.acknowledged), strict=True):
            victim = world.roles["score"]
            victim.arm(f"{point}:1")
            order(world, study)
            wait_for(lambda: victim.popen.poll() is not None, point)  # noqa: B023 - called at once
            assert victim.has_died
            world.start("score")
            assert settled(world, 90) == []
        with world.database.read() as session:
            assert sorted(session.scalars(select(Rescore.instance_id))) == list(range(1, len(RESCORING) + 1))
            assert session.scalars(select(Score.id)).all() == scores
        verdict = judge(world, modality.acknowledged, pacs.reports)
        assert verdict.is_good, verdict
        assert sorted(pacs.reports()) == reports
