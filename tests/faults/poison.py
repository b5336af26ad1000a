"""An image that kills every process that scores it."""

from __future__ import annotations

import time
from io import BytesIO
from pathlib import Path

from pydicom import dcmread
from sqlalchemy import select

from db.models import Instance, Job
from tests.conftest import radiograph, save
from tests.faults.judge import image_of, judge
from tests.faults.pacs import Pacs
from tests.faults.scenario import Outcome, Scenario
from tests.faults.senders import Modality, studies
from tests.faults.world import SUPERVISOR, World

_DEATHS = 5
_SECONDS = 180.0  # the supervisor waits up to 8 s before the fifth life


def poison(folder: Path, url: str) -> Outcome:
    """Send a poisonous image among others to a node under its supervisor."""
    with Pacs() as pacs, World(folder, url, {"PACS": pacs.port}) as world:
        world.start(SUPERVISOR)
        modality = Modality(world.port)
        sent = studies(folder / "sent", 12)
        deadly = save(radiograph(study="deadly", ImageComments="POISON"), folder / "sent" / "deadly.dcm")
        started = time.monotonic()
        modality.send_all([*sent[:6], [deadly], *sent[6:]], 1)
        files = [deadly, *(path for study in sent for path in study)]
        verdict = judge(
            world, modality.acknowledged, pacs.reports, seconds=_SECONDS, expected_failures=1, files=files
        )
        seconds = time.monotonic() - started
        died = [event for event in world.roles[SUPERVISOR].events() if event.get("event") == "process died"]
        study, uid = image_of(deadly)
        with world.database.read() as session:
            failed = session.execute(
                select(Instance.sop_instance_uid, Job.error)
                .join(Job, (Job.ref == Instance.id) & (Job.kind == "score"))
                .where(Job.state == "failed")
            ).all()
    assert [role for event in died if (role := event["role"])] == ["score"] * _DEATHS, died
    if [tuple(row) for row in failed] != [(uid, f"The worker died {_DEATHS} times at this")]:
        verdict.stuck.append(f"given up: {failed}")
    reports = [
        report for one in pacs.reports() if (report := dcmread(BytesIO(one))).StudyInstanceUID == study
    ]
    if ["SCORING_FAILED" in str(report) for report in reports] != [True]:
        verdict.lost.append("The report does not say SCORING_FAILED")
    return Outcome(len(died), verdict, seconds)


SCENARIOS = [Scenario("an image that kills the scorer, five times", poison)]
