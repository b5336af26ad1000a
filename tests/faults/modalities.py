"""Modalities that break off, fall silent, come all at once, send twice, late, or a byte at a time."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing, suppress
from functools import partial
from io import BytesIO
from itertools import pairwise
from pathlib import Path

from pydicom import dcmread
from pynetdicom import build_context
from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    MaximumLengthNotification,
)
from sqlalchemy import select

from db.models import Report
from tests.faults.judge import image_of, judge
from tests.faults.pacs import Pacs
from tests.faults.proxy import Fault, Proxy
from tests.faults.scenario import Outcome, Scenario, Skipped
from tests.faults.senders import Dcmtk, Modality, flat, studies
from tests.faults.world import World, wait_for
from tests.helpers.peers import program

_IDLE_SECONDS = 3
_MOST_ASSOCIATIONS = 16
_STRICT = f"[receive]\nmin_free_mebibytes = 0\nidle_seconds = {_IDLE_SECONDS}\n"


def _leftovers(world: World) -> list[str]:
    """Return what lies half received in the spool."""
    return [path.name for path in (world.spool / "incoming").glob("*/*") if path.is_file()]


# Broken off

_BREAKS = [
    Fault("up", after, how)
    for how in ("fin", "rst", "abort")
    for after in (0, 10, 100, 1_000, 20_000, 65_000, 100_000, 130_000)
]


def _broken_off(folder: Path, url: str) -> Outcome:
    """Connections end, break, or are aborted with A-ABORT, at all places of an object."""
    with (
        Pacs() as pacs,
        World(folder, url, {"PACS": pacs.port}, _STRICT) as world,
        Proxy(world.port, lambda number: _BREAKS[number] if number < len(_BREAKS) else None) as proxy,
    ):
        world.start()
        files = studies(folder / "sent", 6, 3)
        modality = Dcmtk(proxy.port)  # pynetdicom waits for an answer over a broken connection
        modality.send_all(files, 2)
        verdict = judge(world, modality.acknowledged, pacs.reports, files=flat(files))
        seconds = time.monotonic() - max(proxy.hits)
        assert len(proxy.hits) == len(_BREAKS), f"{len(proxy.hits)} of {len(_BREAKS)} faults"
        verdict.stuck += [f"half received: {name}" for name in _leftovers(world)]
        return Outcome(len(proxy.hits), verdict, seconds)


# Silent, or hardly talking

_SILENCES = [
    Fault("up", 0, "stall"),
    Fault("up", 3, "stall"),
    Fault("up", 50_000, "stall"),
    Fault("up", 100_000, "stall"),
    Fault("up", 0, "drip"),
    Fault("up", 50_000, "drip"),
]


class _Loris:
    """One that sends the request for an association byte by byte, or only a part of it."""

    def __init__(self, port: int, number: int, pause: float) -> None:
        self.seconds: float | None = None
        self._content = association_request()[:number]
        self._pause = pause
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._started = time.monotonic()
        self._thread = threading.Thread(target=self._talk, daemon=True)
        self._thread.start()

    def _talk(self) -> None:
        with suppress(OSError):
            for at in range(len(self._content)):
                self._socket.sendall(self._content[at : at + 1])
                if self._has_ended(self._pause):
                    return
            while not self._has_ended(1):
                pass

    def _has_ended(self, seconds: float) -> bool:
        self._socket.settimeout(max(seconds, 0.001))
        try:
            content = self._socket.recv(4096)
        except TimeoutError:
            return False
        except OSError:
            content = b""
        if not content:
            self.seconds = time.monotonic() - self._started
        return not content

    def close(self) -> None:
        """Break the connection, if it is still there."""
        self._socket.close()


def association_request() -> bytes:
    """Return an A-ASSOCIATE-RQ for C-ECHO, as it is on the wire."""
    request = A_ASSOCIATE()
    request.application_context_name = "1.2.840.10008.3.1.1.1"
    request.calling_ae_title, request.called_ae_title = "LORIS", "PACS_NODE"
    context = build_context("1.2.840.10008.1.1")
    context.context_id = 1
    request.presentation_context_definition_list = [context]
    longest, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    longest.maximum_length_received = 16384
    implementation.implementation_class_uid = "1.2.3"
    request.user_information = [longest, implementation]
    pdu = A_ASSOCIATE_RQ()
    pdu.from_primitive(request)
    return bytes(pdu.encode())


def _silent(folder: Path, url: str, silences: Sequence[Fault] = _SILENCES) -> Outcome:
    """Half objects and PDUs, a byte a second: others are served meanwhile, and all places become free."""
    most = len(silences) + 4 + 2  # two are left for those that talk
    settings = _STRICT + f"max_associations = {most}\naddress_share = 1\nrequest_seconds = {_IDLE_SECONDS}\n"
    limit = 2 * _IDLE_SECONDS + 3
    with (
        Pacs() as pacs,
        World(folder, url, {"PACS": pacs.port}, settings) as world,
        Proxy(world.port, lambda number: silences[number] if number < len(silences) else None) as proxy,
        ExitStack() as stack,
    ):
        world.start()
        files = studies(folder / "sent", len(silences), 1)
        silent = Dcmtk(proxy.port)
        waiting = threading.Thread(target=silent.send_all, args=(files, len(files)))
        waiting.start()
        talks = [(0, 0.0), (3, 0.0), (40, 0.0), (1000, 1.0)]
        lorises = [stack.enter_context(closing(_Loris(world.port, *talk))) for talk in talks]
        wait_for(lambda: len(proxy.hits) == len(silences), "silence")
        started = time.monotonic()
        others = Modality(world.port)
        more = studies(folder / "others", 2)
        others.send_all(more, 2)
        served = time.monotonic() - started
        assert served < _IDLE_SECONDS, f"others were served in {served:.1f} s only"
        waiting.join(60)
        wait_for(lambda: len(proxy.ended) == len(silences), "the node to end what is silent", limit)
        wait_for(lambda: all(one.seconds for one in lorises), "the node to end what hardly talks", limit)
        ends = [*proxy.ended, *(one.seconds or 0.0 for one in lorises)]
        assert max(ends) < limit, f"ended after {max(ends):.1f} s only"
        # All places are free again, at once
        last = studies(folder / "last", most, 1)
        with ExitStack() as held:
            for _ in range(most - 1):
                held.enter_context(closing(_held(world.port)))
            others.send_all(last[:2], 1)
        acknowledged = silent.acknowledged | others.acknowledged
        verdict = judge(world, acknowledged, pacs.reports, files=flat([*files, *more, *last[:2]]))
        verdict.stuck += [f"half received: {name}" for name in _leftovers(world)]
        return Outcome(len(ends), verdict, max(ends))


def _held(port: int) -> socket.socket:
    """Return a connection with an association, which the node accepted."""
    connection = socket.create_connection(("127.0.0.1", port))
    connection.settimeout(5)
    connection.sendall(association_request())
    answer = connection.recv(4096)
    assert answer[:1] == b"\x02", f"the association was answered with PDU {answer[:1]!r}"
    return connection


# All at once, and twice


def _dcmtk(name: str, port: int, files: Sequence[Path]) -> subprocess.Popen[str]:
    """Start DCMTK's storescu or dcmsend."""
    command = [program(name), "-v", "-aec", "PACS_NODE", "127.0.0.1", str(port), *map(str, files)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _fifty(folder: Path, url: str) -> Outcome:
    """Fifty associations at once: storescu and dcmsend both send each of 25 studies at the same time."""
    if not (shutil.which("storescu") and shutil.which("dcmsend")):
        raise Skipped("DCMTK is not installed here (Debian: apt install dcmtk).")
    with Pacs() as pacs, World(folder, url, {"PACS": pacs.port}) as world:
        world.start()
        files = studies(folder / "sent", 25, 2)
        running = [_dcmtk(name, world.port, one) for one in files for name in ("storescu", "dcmsend")]
        acknowledged = set()
        for number, process in enumerate(running):
            said, _ = process.communicate(timeout=120)
            stored = said.count("Response (Success)")
            assert (process.returncode, stored) == (0, 2), f"{process.args!r}: {said[-500:]}"
            acknowledged |= {image_of(path) for path in files[number // 2]}
        sent = time.monotonic()
        verdict = judge(world, acknowledged, pacs.reports, files=flat(files))
        seconds = time.monotonic() - sent
        events = [one for one in world.roles["receive"].events() if one.get("event") == "instance stored"]
        outcomes = sorted(str(one["outcome"]) for one in events)
        assert outcomes == ["again"] * 50 + ["new"] * 50, f"{len(outcomes)} objects: {set(outcomes)}"
        return Outcome(len(running), verdict, seconds)


# Late


def _late(folder: Path, url: str) -> Outcome:
    """Images of a study come long after its report: revisions, each of which names the one before."""
    waves, number = 6, 3
    with Pacs() as pacs, World(folder, url, {"PACS": pacs.port}) as world:
        world.start()
        files = studies(folder / "sent", number, waves)
        modality = Modality(world.port)
        for wave in range(waves):
            modality.send_all([[one[wave]] for one in files], 2)
            if wave % 3 < 2:  # the others come while reports are made
                wait_for(lambda n=wave: len(pacs.held) >= n, "a report")  # type: ignore[misc]
                time.sleep(1.5)
        sent = time.monotonic()
        verdict = judge(world, modality.acknowledged, pacs.reports, files=flat(files))
        seconds = time.monotonic() - sent
        with world.database.read() as session:
            rows = session.execute(
                select(Report.study_id, Report.sop_instance_uid, Report.content).order_by(Report.revision)
            ).all()
        for study in {row.study_id for row in rows}:
            mine = [row for row in rows if row.study_id == study]
            assert len(mine) >= 4, f"{len(mine)} revisions"
            for before, after in pairwise(mine):
                if before.sop_instance_uid.encode() not in after.content:
                    verdict.lost.append(f"a revision that does not name the one before: {study}")
            stated = str(dcmread(BytesIO(mine[-1].content)))
            uids = [uid for _, uid in map(image_of, flat(files)) if uid in stated]
            if len(uids) != waves:
                verdict.lost.append(f"the last revision states {len(uids)} images: {study}")
        return Outcome(number * (waves - 1), verdict, seconds)


SCENARIOS = [
    Scenario("modalities: broken off", _broken_off),
    Scenario(
        "modalities: silent, or a byte a second", _silent, quick=partial(_silent, silences=_SILENCES[1:3])
    ),
    Scenario("modalities: fifty at once, each study twice", _fifty),
    Scenario("modalities: late images", _late),
]
