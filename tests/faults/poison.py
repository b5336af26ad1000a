"""Images that do harm to whatever decodes or scores them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

from pydicom import dcmread
from sqlalchemy import select

from db.models import Instance, Job, Score
from tests.conftest import radiograph, save
from tests.faults.judge import Verdict, image_of, judge
from tests.faults.pacs import Pacs
from tests.faults.scenario import Outcome, Scenario
from tests.faults.senders import Modality, studies
from tests.faults.world import SUPERVISOR, World

_DEADLY = {  # what stands in an image, and what becomes of it
    "hang": "Decoding took longer than 15 s",
    "crash": "The decoder process crashed",
    "abort": "The decoder process crashed",
    "memory": "Decoding needs more memory than 256 MiB",
}
_LIMITS = "[classifier]\ndecode_seconds = 15\ndecode_mebibytes = 256"
_NEIGHBOUR_SECONDS, _REFUSED_SECONDS = 60.0, 120.0
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


def deadly(folder: Path, url: str, kinds: Sequence[str] = tuple(_DEADLY), times: int = 3) -> Outcome:
    """Send images that hang, crash or fill the process that decodes them, with others of their studies."""
    with Pacs() as pacs, World(folder, url, {"PACS": pacs.port}, _LIMITS) as world:
        world.start(SUPERVISOR, DEADLY_IMAGES="1")
        modality, sent = Modality(world.port), studies(folder / "sent", 12, 2)
        harmful = {}
        for number, kind in enumerate([*kinds] * times):
            ds = radiograph(study=f"sent-{number}", number=3, ImageComments=f"DEADLY: {kind}")
            sent[number].append(save(ds, folder / "sent" / f"deadly-{number}.dcm"))
            harmful[str(ds.SOPInstanceUID)] = _DEADLY[kind]
        modality.send_all(sent, 2)
        last = time.monotonic()
        files = [path for study in sent for path in study]
        verdict = judge(world, modality.acknowledged, pacs.reports, seconds=_SECONDS, files=files)
        seconds = time.monotonic() - last
        ends = [
            e for e in world.roles[SUPERVISOR].events() if e.get("event") in ("process died", "process hangs")
        ]
        _judge_scores(world, harmful, verdict)
    verdict.stuck += [f"{event['event']}: {event['role']}" for event in ends]
    return Outcome(len(harmful), verdict, seconds)


def _judge_scores(world: World, harmful: Mapping[str, str], verdict: Verdict) -> None:
    """Require of each harmful image its refusal, and of each other one a score that came soon."""
    with world.database.read() as session:
        rows = session.execute(select(Instance, Score).join(Score, Score.instance_id == Instance.id)).all()
        for instance, score in rows:
            wanted = harmful.get(instance.sop_instance_uid)
            seconds = (score.scored_at - instance.received_at).total_seconds()
            if wanted is None and (score.probability is None or seconds > _NEIGHBOUR_SECONDS):
                verdict.stuck.append(f"a neighbour: {score.reason} after {seconds:.0f} s")
            if wanted is not None and (score.reason, score.detail) != ("UNREADABLE", wanted):
                verdict.stuck.append(f"{wanted}: {score.reason} {score.detail}")
            if wanted is not None and seconds > _REFUSED_SECONDS:
                verdict.stuck.append(f"{wanted}: after {seconds:.0f} s")


def _few_deadly(folder: Path, url: str) -> Outcome:
    return deadly(folder, url, ("hang", "crash", "memory"), 1)


SCENARIOS = [
    Scenario("an image that kills the scorer, five times", poison),
    Scenario("images that hang, crash or fill their decoder", deadly, quick=_few_deadly),
]
