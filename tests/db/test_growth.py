"""What is asked of a large database is looked up in an index, and is the same whichever way it is found."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine, event, select, text, update
from sqlalchemy.orm import Session

import db
from db import commitments, deliveries, inventory, listings, queries, queue, rescores, results, status, stock
from db.models import Base, Instance, Job, Study
from db.prepared import Prepared
from db.queue import Kind
from db.results import LEDGER_COLUMNS, RESULT_COLUMNS, Filter
from db.session import Database
from tests.benchmarks.grown import FAILED, WAITING, fill
from tests.helpers.rows import new, report, score

IMAGES = 3000
NOW = datetime.now(UTC)
DAY = timedelta(days=1)
SMALL = {"model", "process", "commitment_asked", "commitment_wanted", "study_problem"}
# Who wants the newest begins at the end of the first; the others hold what is not done
MAY_BE_WALKED = {"ix_instance_received_at", "ix_job_ready", "ix_job_failed", "ix_job_held"}


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def grown(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """A database with some thousand images, nearly all of which are done; no test leaves anything in it."""
    if request.param == "sqlite":
        file = tmp_path_factory.mktemp("grown") / "results.sqlite"
        shutil.copyfile(request.getfixturevalue("sqlite_template"), file)
        with filled(f"sqlite:///{file}") as database:
            yield database
    else:
        server = request.getfixturevalue("postgres_server")
        name = server.create(request.getfixturevalue("postgres_template"))
        with filled(server.url(name)) as database:
            yield database
        server.drop(name)


@contextmanager
def filled(url: str) -> Iterator[Database]:
    fill(url, IMAGES)
    with closing(Database(url)) as database:
        yield database


class _Undo(Exception):
    """Nothing is kept."""


PREPARED = Prepared.run


@contextmanager
def undone(database: Database) -> Iterator[Session]:
    with suppress(_Undo), database.write() as session:
        yield session
        raise _Undo


def plans(database: Database, ask: Callable[[Session], object]) -> dict[str, list[str]]:
    """Return how the statements by which something is asked go through the large tables, by statement."""
    said: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, values: Any, *_: Any) -> None:
        said.append((statement, values))

    def run(prepared: Prepared, connection: Any, **values: Any) -> Any:
        said.append((prepared.sql, prepared.bound(values)))
        return PREPARED(prepared, connection, **values)

    with undone(database) as session:
        if not database.is_sqlite:
            for way in ("seqscan", "hashjoin", "mergejoin"):  # right for so few rows, not for many
                session.execute(text(f"SET LOCAL enable_{way} = off"))
        engine = session.get_bind()
        event.listen(engine, "before_cursor_execute", note)
        with patch.object(Prepared, "run", run):
            ask(session)
        event.remove(engine, "before_cursor_execute", note)
        cursor = session.connection().connection.cursor()
        return {
            statement: [*_ways(cursor, statement, values, database.is_sqlite)]
            for statement, values in said
            if re.match(r"(SELECT|INSERT|UPDATE|WITH)", statement) and not isinstance(values, list)
        }


def _ways(cursor: Any, statement: str, values: Any, is_sqlite: bool) -> Iterator[str]:
    """Yield ``table``, where all of it is read, or ``table index columns looked up``."""
    if is_sqlite:
        cursor.execute(f"EXPLAIN QUERY PLAN {statement}", values)
        for *_, line in cursor.fetchall():
            if found := re.match(r"(?:SCAN|SEARCH) (\w+)(?: USING .*?INDEX (\w+))?(.*)", line):
                is_by_rowid = line.startswith("SEARCH") and not found[2]  # or its end, for the largest one
                rowid = "rowid" if is_by_rowid else ""
                yield " ".join(filter(None, (found[1], found[2], rowid, *re.findall(r"\w+(?=[=<>])", line))))
    else:
        cursor.execute(f"EXPLAIN (FORMAT JSON) {statement}", values)
        yield from _nodes(cursor.fetchone()[0][0]["Plan"])


def _nodes(node: dict[str, Any]) -> Iterator[str]:
    columns = re.findall(r"\((\w+)\)?(?:::text)? (?:[=<>]|IS)", node.get("Index Cond", ""))
    if "Index Name" in node:
        yield " ".join((node.get("Relation Name", "bitmap"), node["Index Name"], *columns))
    elif node["Node Type"] == "Seq Scan":
        yield str(node["Relation Name"])
    for inner in node.get("Plans", []):
        yield from _nodes(inner)


LARGE = {table.name for table in Base.metadata.sorted_tables} - SMALL
SHORT = {"s": "score", "i": "report_image", "score_1": "score"}  # as views and statements call them


def reads_all(way: str) -> bool:
    """Tell whether that reads all of a large table, or of the jobs of one kind."""
    table, *index = way.split()
    if table == "bitmap":
        return len(index) < 2 and index[0] not in MAY_BE_WALKED
    if SHORT.get(table, re.sub(r"_\d+$", "", table)) not in LARGE or MAY_BE_WALKED & {*index}:
        return False
    return (len(index) < 2 and index != ["rowid"]) or index[1:] == ["kind"]


def first(column: str, of: str = "study") -> Callable[[Session], Any]:
    return lambda session: session.execute(text(f"SELECT {column} FROM {of} WHERE id = 7")).scalar_one()


def with_claim(session: Session, finish: Callable[[Session, str, list[int]], object]) -> None:
    claim = queue.claim(session, Kind.SCORE, "", limit=8, lease_seconds=60)
    assert len(claim.jobs) == 8
    finish(session, claim.token, [job.id for job in claim.jobs])


def ask(what: Callable[..., Any], **wanted: Any) -> Callable[[Session], object]:
    def asked(session: Session) -> object:
        known = {name: one(session) if callable(one) else one for name, one in wanted.items()}
        return what(session, Filter(limit=50, **known))

    return asked


WANTED: dict[str, dict[str, Any]] = {
    "newest": {},
    "patient": {"patient": first("patient_id")},
    "name": {"patient": first("patient_name")},
    "accession": {"accession": first("accession_number")},
    "study": {"study": first("study_instance_uid")},
    "since": {"since": NOW - 30 * DAY},
    "day": {"since": NOW - 801 * DAY, "until": NOW - 800 * DAY},
    "until": {"until": NOW - 800 * DAY},
    "probability": {"min_probability": 0.9},
    "positive": {"decision": "positive"},
    "undetermined": {"decision": "undetermined"},
    "waiting": {"decision": "waiting"},
    "not scored": {"decision": "not_scored"},
}
ASKED: dict[str, Callable[[Session], object]] = {
    **{
        f"{what.__name__} {name}": ask(what, **wanted)
        for what in (results.results, results.ledger)
        for name, wanted in WANTED.items()
    },
    "results study date": ask(results.results, study_dates=("20250610", "20250611")),
    "ledger failed": ask(results.ledger, state="failed"),
    "ledger committed": ask(results.ledger, state="committed"),
    "counts": status.counts,
    "oldest waiting": status.oldest_waiting,
    "failures": lambda session: status.failures(session, 20),
    "undelivered": status.undelivered,
    "study exists": lambda session: status.study_exists(session, "1.2"),
    "retry": lambda session: status.retry(session, None, NOW),
    "retry a study": lambda session: status.retry(session, "1.2", NOW),
    "abandon": lambda session: status.abandon(session, "PACS", NOW),
    "receive": lambda session: queries.add_instance(session, new(), 0),
    "instances": lambda session: queries.instances(session, [7, 8]),
    "study": lambda session: queries.study_instances(session, 7),
    "wake": lambda session: queries.wake_report(session, 7),
    "last report": lambda session: queries.last_report(session, 7),
    "deliveries": lambda session: deliveries.pending(session, [7, 8]),
    "delivered": lambda session: deliveries.record_delivered(
        session, 7, "PACS", commits=True, at=NOW, give_up_at=NOW
    ),
    "claim": lambda session: with_claim(session, queue.finish),
    "renew": lambda session: with_claim(session, lambda s, token, _: queue.renew(s, token, 60)),
    "claim one": lambda session: queue.claim_one(session, Kind.REPORT, 7, 60),
    "revive": lambda session: queue.revive(session, Kind.SCORE, 7),
    "close": lambda session: queue.close(session, Kind.COMMIT, [7, 8]),
    "held": lambda session: stock.held(session, "7f", "80"),
    "missed": lambda session: stock.missed(session, "7f"),
    "spent": lambda session: stock.spent(session, NOW, 100),
    "release": lambda session: stock.release(session, 7, NOW, NOW),
    "lock released": lambda session: stock.lock_released(session, ["7f"]),
    "known": lambda session: inventory.known(session, ["1.2"]),
    "reported": lambda session: inventory.reported(
        session, first("study_instance_uid")(session), ["1.2.840.10008.5.1.4.1.1.1.1"]
    ),
    "unread": lambda session: stock.unread(session, 1000, 50),
    "problem studies": status.problem_studies,
    "dismiss": lambda session: status.dismiss(session, "1.2", NOW),
    "copies": lambda session: queries.earlier_copies(session, queries.instances(session, [7])[0]),
    "same image": lambda session: queries.record_same_image(session, 8, 7),
    "page": lambda session: queries.report_to_draw(session, 7),
    "rescore": lambda session: rescores.order(session, rescores.Wanted(), "5e" * 32, (7, 8)),
    "cancel": rescores.cancel,
    "newest scores": lambda session: [*listings.rows(session, listings.SCORES, Filter(limit=2))],
    "scores of a study": lambda session: [*listings.rows(session, listings.SCORES, Filter(study="1.2"))],
    "one study": lambda session: [*listings.rows(session, listings.STUDIES, Filter(study="1.2"))],
    "withdraw": lambda session: deliveries.withdraw_reports(session, 7, 2, NOW, ""),
    "committed": lambda session: commitments.record_committed(session, "PACS", ["1.2"], NOW),
    "kept": lambda session: commitments.kept(session, ["1.2"]),
}
FIRST_COLUMNS = {"results": 25, "ledger": 22}
BY_HAND = {
    "patient": "patient_id = 'P7'",
    "accession": "accession_number = 'A7'",
    "study date": "study_date = '20250610'",
    "day": "received_at >= '2025-06-10' AND received_at < '2025-06-11'",
}


@pytest.mark.parametrize("what", ASKED)
def test_no_statement_reads_all_of_a_large_table(
    grown: Database, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "_COUNTABLE", 0)
    found = plans(grown, ASKED[what])
    assert found
    assert {said: ways for said, ways in found.items() if any(map(reads_all, ways))} == {}


@pytest.mark.parametrize("condition", BY_HAND.values(), ids=[*BY_HAND])
def test_the_view_finds_by_index_what_people_ask_for_by_hand(grown: Database, condition: str) -> None:
    asked = text(f"SELECT * FROM results WHERE {condition} ORDER BY received_at DESC LIMIT 100")
    [ways] = plans(grown, lambda session: session.execute(asked).all()).values()
    assert not [way for way in ways if reads_all(way)]
    assert any(re.match(r"(study|bitmap|instance) ix_\w+ \w+", way) for way in ways), ways


def test_a_claim_reads_no_job_that_is_not_due(grown: Database) -> None:
    found = plans(grown, ASKED["claim"])
    ways = [way for ways in found.values() for way in ways if "ix_job_ready" in way or "suspect" in way]
    assert len(ways) >= 3
    assert all(way.endswith(" kind lane visible_at") for way in ways), ways


def test_what_is_found_does_not_depend_on_the_way_to_it(
    grown: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, asked in ASKED.items():
        if name.startswith(("results ", "ledger ")):
            with grown.read() as session:
                monkeypatch.setattr(results, "_worth_looking_up", lambda *_: -1)
                walked = asked(session)
                monkeypatch.setattr(results, "_worth_looking_up", lambda *_: 10**6)
                assert asked(session) == walked, name


def test_few_that_are_no_longer_what_they_were_do_not_hide_others(database: Database) -> None:
    for number in range(5):
        with database.write() as session:
            queries.add_instance(session, new(number, received_at=NOW + number * DAY), 0)
        score(database, number, probability=0.9)
    for number in (3, 4):
        score(database, number, model="newer", probability=0.1, decision="negative")
    with database.read() as session:
        found = results.results(session, Filter(min_probability=0.5, limit=2))
    assert [(row["received_at"] - NOW).days for row in found] == [2, 1]


def test_the_views_have_the_columns_they_always_had_and_new_ones_at_the_end(database: Database) -> None:
    for view, columns in (("results", RESULT_COLUMNS), ("ledger", LEDGER_COLUMNS)):
        with database.read() as session:
            names = [*session.execute(text(f"SELECT * FROM {view}")).keys()]
            assert names.pop(FIRST_COLUMNS[view]) == "instance_id"  # the end of 0003; others came after it
            assert tuple(names) == columns


def test_counts_are_right_where_they_are_counted_and_near_where_they_are_estimated(
    grown: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with grown.read() as session:
        exact = status.counts(session)
        monkeypatch.setattr(status, "_COUNTABLE", 0)
        estimated = status.counts(session)
    assert (exact.instances, exact.scores, exact.is_estimate) == (IMAGES, IMAGES - WAITING, False)
    assert exact.jobs["score", "ready"] == WAITING
    assert exact.jobs["score", "done"] == IMAGES - WAITING
    assert exact.jobs["deliver", "failed"] == exact.deliveries["PACS", "failed"] == FAILED
    assert estimated.is_estimate is not grown.is_sqlite
    assert abs(estimated.instances - IMAGES) < IMAGES / 20


def test_a_job_that_the_clock_put_off_too_far_is_called_back(grown: Database) -> None:
    with undone(grown) as session:
        far = queue.later(session, 10 * queue.LONGEST_WAIT_SECONDS)
        session.execute(update(Job).where(Job.state == "ready").values(visible_at=far))
        assert len(queue.claim(session, Kind.SCORE, "", limit=8, lease_seconds=60).jobs) == 8


def test_retention_finds_what_is_due_beyond_what_is_not_done(grown: Database) -> None:
    with undone(grown) as session:
        due = stock.spent(session, NOW - 100 * DAY, 600)
        assert len(due) == 600
        assert stock.release(session, due[0], NOW - 100 * DAY, NOW)
        assert due[0] not in stock.spent(session, NOW - 100 * DAY, 600)
        waiting = session.scalars(select(Instance.study_id).order_by(Instance.id.desc()).limit(1)).one()
        assert waiting not in stock.spent(session, NOW + DAY, 10 * IMAGES)


def test_a_report_that_was_sent_under_another_uid_is_found_by_it(database: Database) -> None:
    with database.write() as session:
        queries.add_instance(session, new(), 0)
    report(database, {1: None}, destinations=["PACS"])
    with database.write() as session:
        deliveries.record_delivered(
            session, 1, "PACS", commits=True, at=NOW, give_up_at=NOW, sop_instance_uid="1.2.3"
        )
        assert commitments.record_committed(session, "PACS", ["1.2.3"], NOW) == 1


def test_a_database_of_the_version_before_keeps_its_rows(empty_url: str) -> None:
    engine = create_engine(empty_url)
    with engine.begin() as connection:
        config = Config()
        config.set_main_option("script_location", str(Path(db.__file__).parent / "migrations"))
        config.set_main_option("path_separator", "os")
        config.attributes["connection"] = connection
        command.upgrade(config, "0002")
    fill(empty_url, IMAGES)
    with engine.connect() as connection:
        before = connection.execute(text("SELECT * FROM results ORDER BY sop_instance_uid")).all()
    engine.dispose()
    with closing(Database(empty_url)) as database:
        database.upgrade()
        with database.read() as session:
            after = session.execute(text("SELECT * FROM results ORDER BY sop_instance_uid")).all()
            # Since 0006 there is no detail where there is no reason, which was an empty text before; since
            # 0011 no threshold where there is no probability
            expected = [
                tuple(
                    None
                    if (name, value) == ("detail", "") or (name == "threshold" and row.probability is None)
                    else value
                    for name, value in row._mapping.items()
                )
                for row in before
            ]
            assert [tuple(row[: len(before[0])]) for row in after] == expected
            assert len(results.results(session, Filter(decision="waiting"))) == WAITING
            assert len(stock.unread(session, None, 10 * IMAGES)) == IMAGES
            known = session.execute(select(Instance.patient_id, Study.patient_id).join(Study)).all()
            assert len(known) == IMAGES
            assert all(mine == of_study for mine, of_study in known)
