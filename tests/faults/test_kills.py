"""kill -9 here and there, a little of what `make faults` does at every step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from threading import Thread

import pytest
from sqlalchemy import select

from db.models import Instance, Job
from tests.faults.judge import data_set, image_of
from tests.faults.kills import DELIVERING, RECEIVING, REPORTING, SCORING, Point, kill_at
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
