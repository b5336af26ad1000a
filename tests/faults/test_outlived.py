"""What is outlived besides kills: standing still, files without rows, an older schema; and the judge."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer
from sqlalchemy import delete, insert, select, update
from sqlalchemy.orm import Session

from db.models import Delivery, Instance, Job, Model, Report, ReportImage, Score
from tests.faults import __main__ as runner
from tests.faults.frozen import HOLDING, freeze_at
from tests.faults.judge import Verdict, judge
from tests.faults.pacs import Pacs
from tests.faults.scenario import Outcome, Scenario, Skipped
from tests.faults.senders import Modality, studies
from tests.faults.stock import ORPHANING, orphan_at
from tests.faults.upgrades import upgrade
from tests.faults.world import World

on_sqlite = pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
on_postgresql = pytest.mark.parametrize("backend", ["postgresql"], indirect=True)


@on_postgresql
def test_a_worker_that_stood_still_past_its_lease_writes_nothing(database_url: str, tmp_path: Path) -> None:
    outcome = freeze_at([HOLDING[1]], tmp_path / "node", database_url)
    assert outcome.verdict.is_good, outcome.verdict


@on_sqlite
def test_a_file_whose_row_a_kill_prevented_is_taken_in(database_url: str, tmp_path: Path) -> None:
    outcome = orphan_at([ORPHANING[1]], tmp_path / "node", database_url)
    assert outcome.verdict.is_good, outcome.verdict
    assert outcome.verdict.studies == 1


@on_sqlite
def test_work_that_waits_in_the_first_schema_goes_on(database_url: str, tmp_path: Path) -> None:
    outcome = upgrade(tmp_path / "node", database_url)
    assert outcome.verdict.is_good, outcome.verdict


@dataclass
class Case:
    """What a run left without a fault, of which a test makes one with a fault."""

    world: World
    modality: Modality
    reports: list[bytes]
    files: list[Path]

    def judged(self) -> Verdict:
        """Return what the judge says of it."""
        return judge(
            self.world, self.modality.acknowledged, lambda: self.reports, seconds=0, files=self.files
        )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Two studies with two images each, done and delivered; nothing runs any more."""
    folder = tmp_path_factory.mktemp("finished") / "node"
    with Pacs() as pacs, World(folder, f"sqlite:///{folder}/results.sqlite", {"PACS": pacs.port}) as world:
        world.start()
        modality, sent = Modality(world.port), studies(folder / "sent", 2, images=2)
        modality.send_all(sent)
        files = [path for study in sent for path in study]
        assert judge(world, modality.acknowledged, pacs.reports, files=files).is_good
        reports = pacs.reports()
    return Case(world, modality, reports, files)


@pytest.fixture
def case(finished: Case, tmp_path: Path) -> Iterator[Case]:
    """A copy of it that a test may spoil."""
    folder = tmp_path / "node"
    shutil.copytree(finished.world.folder, folder)
    with World(folder, f"sqlite:///{folder}/results.sqlite", {}) as world:
        yield Case(world, finished.modality, [*finished.reports], finished.files)


def _first(session: Session) -> int:
    return session.scalars(select(Instance.id).order_by(Instance.id)).first() or 0


def _lose_score(session: Session) -> None:
    session.execute(update(ReportImage).values(score_id=None))
    session.execute(delete(Score).where(Score.instance_id == _first(session)))


def _score_again(session: Session) -> None:
    model = dict(session.execute(select(*Model.__table__.columns)).mappings().one())
    model |= {"id": 99, "sha256": "2" * 64}
    session.execute(insert(Model).values(**model))
    statement = select(*Score.__table__.columns).where(Score.instance_id == _first(session))
    score = dict(session.execute(statement).mappings().one())
    session.execute(insert(Score.__table__).values(**score | {"id": 99, "model_id": 99}))  # type: ignore[arg-type]


def _lose_job(session: Session) -> None:
    session.execute(delete(Job).where(Job.kind == "score", Job.ref == _first(session)))


def _leave_job(session: Session) -> None:
    session.execute(update(Job).where(Job.kind == "deliver").values(state="ready"))


def _fail_job(session: Session) -> None:
    session.execute(update(Job).where(Job.kind == "deliver").values(state="failed"))


def _leave_delivery(session: Session) -> None:
    session.execute(update(Delivery).values(state="pending"))


def _change_report(session: Session) -> None:
    content = session.scalars(select(Report.content).where(Report.id == 1)).one()
    session.execute(update(Report).where(Report.id == 1).values(content=content + b"\0\0"))


def _rename_report(session: Session) -> None:
    session.execute(update(Report).where(Report.id == 1).values(sop_instance_uid="2.25.1"))


@pytest.mark.parametrize(
    ("spoil", "where", "says"),
    [
        (_lose_score, "lost", "no score"),
        (_score_again, "doubled", "2 scores"),
        (_lose_job, "lost", "0 score jobs"),
        (_leave_job, "stuck", "ready"),
        (_fail_job, "stuck", "failed"),
        (_leave_delivery, "stuck", "not delivered"),
        (_change_report, "doubled", "other bytes than are stored"),
        (_rename_report, "doubled", "a report that is not stored"),
    ],
)
def test_the_judge_sees_what_is_wrong_in_the_database(
    spoil: Callable[[Session], None], where: str, says: str, case: Case
) -> None:
    assert case.judged().is_good
    with case.world.database.write() as session:
        spoil(session)
    assert says in str(getattr(case.judged(), where))


def test_the_judge_sees_images_that_are_not_recorded_or_in_no_report(case: Case) -> None:
    case.modality.acknowledged.add(("2.25.1", "2.25.2"))
    try:
        lost = case.judged().lost
    finally:
        case.modality.acknowledged.remove(("2.25.1", "2.25.2"))
    assert lost == ["no row: 2.25.2", "in no report at the PACS: 2.25.2"]
    del case.reports[0]
    assert len(case.judged().lost) == 2


def test_the_judge_sees_files_that_are_gone_or_changed(case: Case) -> None:
    gone, changed, *_ = (case.world.spool / "objects").glob("??/*.dcm")
    gone.unlink()
    changed.write_bytes(changed.read_bytes()[:-1])
    assert sorted(one.partition(":")[0] for one in case.judged().lost) == ["no file", "other bytes"]


def test_the_judge_sees_a_report_that_came_in_two_forms(case: Case) -> None:
    case.reports.append(case.reports[0].replace(b"Test^Alice", b"Test^Alicf"))
    doubled = case.judged().doubled
    assert any("2 contents" in one for one in doubled)


@pytest.mark.parametrize(
    ("verdict", "code"),
    [
        (Verdict(studies=1), 0),
        (Verdict(lost=["an image"]), 1),
        (Verdict(doubled=["a report"]), 1),
        (Verdict(stuck=["a job"]), 1),
    ],
)
def test_the_runner_fails_on_any_loss_double_or_stall(
    verdict: Verdict, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "scenarios", lambda: [scenario(lambda *_: Outcome(1, verdict, 0.5))])
    assert exit_code(tmp_path) == code
    assert "| a fault | sqlite | 1 |" in (tmp_path / "faults.md").read_text()


def test_the_runner_fails_on_a_fault_that_was_none_and_skips_what_the_machine_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_folder: Path, _url: str) -> Outcome:
        raise AssertionError("it did not die")

    def lacking(_folder: Path, _url: str) -> Outcome:
        raise Skipped("no such program")

    for run, code in ((broken, 1), (lacking, 0), (lambda *_: Outcome(0, Verdict(), 0.0), 1)):
        monkeypatch.setattr(runner, "scenarios", lambda run=run: [scenario(run)])
        assert exit_code(tmp_path) == code


def scenario(run: Callable[[Path, str], Outcome]) -> Scenario:
    return Scenario("a fault", run, ("sqlite",))


def exit_code(out: Path) -> int:
    try:
        runner.main(out=out)
    except typer.Exit as ended:
        return int(ended.exit_code)
    return 0
