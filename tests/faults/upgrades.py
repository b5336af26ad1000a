"""A new version of the program on the database and the spool of the version before, and the reverse."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, MetaData, create_engine, insert, select, text

import db
from tests.faults.judge import image_of, judge, settled
from tests.faults.pacs import Pacs
from tests.faults.scenario import Outcome, Scenario
from tests.faults.senders import Modality, studies
from tests.faults.world import SUPERVISOR, World, wait_for

_FIRST = "0001"
_NEWER = "9999"

Rows = Mapping[str, Sequence[Mapping[str, Any]]]
"""The rows of each table."""


def upgrade(folder: Path, url: str) -> Outcome:
    """Let work of every kind wait in the first schema, and start `pacs-node serve` on it."""
    with Pacs() as pacs, World(folder, url, {"PACS": pacs.port}) as world:
        modality = Modality(world.port)
        done, pending, unscored, late = studies(folder / "sent", 4)
        world.start()
        modality.send_all([done], 1)
        wait_for(lambda: len(pacs.reports()) == 1, "the first report")
        assert not settled(world, 30)
        pacs.stop()
        modality.send_all([pending], 1)
        wait_for(lambda: any(job.startswith("deliver") for job in settled(world, 0)), "a pending delivery")
        world.roles["score"].stop()
        modality.send_all([unscored], 1)
        wait_for(lambda: any(job.startswith("score") for job in settled(world, 0)), "an image to score")
        for role in world.roles.values():
            role.stop()
        world.roles.clear()
        world.database.close()
        with opened(url) as engine:
            before = to_first(engine)
        states = sorted(row["state"] for row in before["delivery"])
        assert states == ["delivered", "pending"], states
        assert [row["kind"] for row in before["job"] if row["state"] == "ready"].count("score") == 1
        pacs.start()
        started = time.monotonic()
        world.start(SUPERVISOR)
        modality.send_all([late], 1)
        files = [*done, *pending, *unscored, *late]
        verdict = judge(world, map(image_of, files), pacs.reports, files=files)
        recovery = time.monotonic() - started
        with opened(url) as engine:
            after = rows(engine)
        assert revision(after) not in (_FIRST, _NEWER)
        verdict.lost += differences(before, after)
        if len(pacs.reports()) != len(files):
            verdict.doubled.append(f"{len(pacs.reports())} reports came of {len(files)} studies")
    return Outcome(1, verdict, recovery)


def differences(before: Rows, after: Rows) -> list[str]:
    """Return which rows are gone, or say something else although nothing was to be done about them."""
    found = []
    for table in ("study", "instance", "model", "score", "report", "report_image"):
        for row in before[table]:
            kept = {"last_started_at", "last_received_at", "quiet_at"} if table != "score" else set()
            named = {name: value for name, value in row.items() if name not in kept}
            if not any(named.items() <= {**other}.items() for other in after[table]):
                found.append(f"row of {table}: {named}")
    return found


def newer(folder: Path, url: str) -> Outcome:
    """Start the program on the database of a newer one: it says so, and changes nothing."""
    with Pacs() as pacs, World(folder, url, {"PACS": pacs.port}) as world:
        world.start()
        modality, sent = Modality(world.port), studies(folder / "sent", 2)
        modality.send_all(sent)
        files = [path for study in sent for path in study]
        verdict = judge(world, modality.acknowledged, pacs.reports, files=files)
        for role in world.roles.values():
            role.stop()
        with opened(url) as engine:
            with engine.begin() as connection:
                connection.execute(text(f"UPDATE alembic_version SET version_num = '{_NEWER}'"))
            before, kept = rows(engine), _files(world)
            for what in (SUPERVISOR, "role receive", "role score", "role deliver"):
                verdict.stuck += _not_refused(world, what)
            if rows(engine) != before or _files(world) != kept:
                verdict.lost.append("a program that was too old changed something")
    return Outcome(4, verdict, 0.0)


def _not_refused(world: World, what: str) -> list[str]:
    """Return what is wrong with how the program refuses to start."""
    line = [sys.executable, "-m", "pacs_node", *what.split(), "--config", str(world.config)]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=60)
    said = [text for text in done.stderr.strip().splitlines() if not text.startswith("{")]
    is_right = done.returncode == 2 and len(said) == 1 and "newer version; update the program" in said[0]
    return [] if is_right else [f"{what} ended with {done.returncode}: {done.stderr[-500:]}"]


def _files(world: World) -> list[Path]:
    return sorted((world.spool / "objects").rglob("*.dcm"))


def to_first(engine: Engine) -> Rows:
    """Put all that is in a database into the first schema; return the rows as they stand there then."""
    now = rows(engine)
    _drop_everything(engine)
    with engine.begin() as connection:
        config = Config()
        config.set_main_option("script_location", str(Path(db.__file__).parent / "migrations"))
        config.set_main_option("path_separator", "os")
        config.attributes["connection"] = connection
        command.upgrade(config, _FIRST)
    metadata = MetaData()
    metadata.reflect(engine)
    with engine.begin() as connection:
        for table in metadata.sorted_tables:
            if table.name == "alembic_version":
                continue
            old = [{name: row[name] for name in table.columns.keys()} for row in now[table.name]]  # noqa: SIM118
            if old:
                connection.execute(insert(table), old)
            if "id" in table.columns and engine.dialect.name == "postgresql":
                connection.execute(text(_NEXT.format(table=table.name)))
    first = rows(engine)
    assert revision(first) == _FIRST
    return first


_NEXT = "SELECT setval(pg_get_serial_sequence('{table}', 'id'), (SELECT COALESCE(MAX(id), 1) FROM {table}))"


def _drop_everything(engine: Engine) -> None:
    if engine.dialect.name == "postgresql":
        with engine.begin() as connection:
            connection.execute(text("DROP SCHEMA public CASCADE"))
            connection.execute(text("CREATE SCHEMA public"))
    else:
        engine.dispose()
        Path(str(engine.url.database)).unlink()


def rows(engine: Engine) -> Rows:
    """Return all that is in a database."""
    metadata = MetaData()
    metadata.reflect(engine)
    with engine.connect() as connection:
        return {
            table.name: [dict(row) for row in connection.execute(select(table)).mappings()]
            for table in metadata.sorted_tables
        }


@contextmanager
def opened(url: str) -> Iterator[Engine]:
    """Return a context with connections that know nothing of the node."""
    engine = create_engine(url)
    try:
        yield engine
    finally:
        engine.dispose()


def revision(content: Rows) -> str:
    """Return the version of a schema."""
    return str(content["alembic_version"][0]["version_num"])


SCENARIOS = [
    Scenario("restart with the database and spool of the first version", upgrade),
    Scenario("restart with the database of a newer version", newer),
]
