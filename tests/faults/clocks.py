"""Clocks that jump while the node is at work."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event, Thread

from sqlalchemy import func, select

from db.models import Study
from tests.faults.judge import judge
from tests.faults.pacs import Pacs
from tests.faults.scenario import Outcome, Scenario, Skipped
from tests.faults.senders import Modality, studies
from tests.faults.world import World
from tests.helpers.postgres import OwnServer, own_folder

_JUMPS = ("+3600", "+0", "-3600", "+0", "+3600", "-3600", "+0")
"""Seconds between the clock of the node and the right one: each time it jumps by an hour, once by two."""
_HOUR = 3600 * 0.9  # at least, for the work went on meanwhile
_STUDIES = 150
_BETWEEN = 0.1  # seconds between two studies
_PAUSE = 2.0  # and between two jumps


def library() -> Path:
    """Return the library that fakes clocks."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    if not found:
        raise Skipped("libfaketime is not installed here (Debian: apt install faketime)")
    return found[0]


def jump(folder: Path, url: str) -> Outcome:
    """Let the clock jump again and again while studies come in.

    With SQLite the clock is that of the processes of the node, with PostgreSQL that of the server.
    """
    with ExitStack() as stack:
        offset = stack.enter_context(own_folder()) / "offset"  # where the server may read it
        _set(offset, "+0")
        faked = {
            "LD_PRELOAD": str(library()),
            "FAKETIME_TIMESTAMP_FILE": str(offset),
            "FAKETIME_CACHE_DURATION": "1",
            "DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }
        if not url.startswith("sqlite"):
            url, faked = stack.enter_context(_server(faked)), {}
        pacs = stack.enter_context(Pacs())
        world = stack.enter_context(World(folder, url, {"PACS": pacs.port}))
        world.start(**faked)
        modality, sent = Modality(world.port), studies(folder / "sent", _STUDIES)
        enough = Event()
        sender = Thread(target=_send, args=(modality, sent, enough))
        sender.start()
        for seconds in _JUMPS:
            time.sleep(_PAUSE)
            assert sender.is_alive(), "all was sent before the last jump"
            _set(offset, seconds)
        last = time.monotonic()
        time.sleep(_PAUSE)
        enough.set()
        sender.join()
        files = [path for study in sent for path in study]
        verdict = judge(world, modality.acknowledged, pacs.reports, files=files)
        recovery = time.monotonic() - last
        with world.database.read() as session:
            first, latest = session.execute(select(func.min(Study.quiet_at), func.max(Study.quiet_at))).one()
    assert latest - first > 2 * _HOUR, f"the clock did not jump: {first} to {latest}"
    return Outcome(len(_JUMPS), verdict, recovery)


def _set(offset: Path, seconds: str) -> None:
    written = offset.with_suffix(".new")
    written.write_text(seconds)
    written.chmod(0o644)
    written.replace(offset)


def _send(modality: Modality, sent: Sequence[Sequence[Path]], enough: Event) -> None:
    for files in sent:
        if enough.is_set():
            return
        modality.send(files)
        time.sleep(_BETWEEN)


@contextmanager
def _server(faked: Mapping[str, str]) -> Iterator[str]:
    """Return a context with a server of PostgreSQL whose clock is faked; it says the URL of a database."""
    with own_folder() as folder:
        os.environ |= faked
        try:
            server = OwnServer(folder)
            server.start()
        finally:
            for name in faked:
                del os.environ[name]
        try:
            yield server.create()
        finally:
            server.stop()


SCENARIOS = [Scenario("a clock that jumps an hour back and forward", jump)]
