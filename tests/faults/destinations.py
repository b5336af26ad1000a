"""A PACS that is down, refuses, never answers, breaks off, answers with failures, or forgets what it took."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pynetdicom import AE, build_role, evt
from pynetdicom.association import Association
from sqlalchemy import func, select

from db.models import Delivery
from pacs_node.commitment.messages import COMMITMENT
from pacs_node.demo.peers import free_port
from pacs_node.reporting.report import REPORT_CLASSES
from tests.faults.judge import Verdict, judge
from tests.faults.pacs import Behaviour, Pacs
from tests.faults.proxy import Fault, Proxy
from tests.faults.scenario import Outcome, Scenario, Skipped
from tests.faults.senders import Modality, studies
from tests.faults.world import World, wait_for
from tests.helpers.peers import program

_SOON = 6.0  # seconds within which a report reaches a PACS that is well: 0.5 to be quiet, then the work
_QUICK = "[deliver]\nretry_seconds = 0.2\nmax_retry_seconds = 1\nconnect_seconds = 2\nanswer_seconds = 2\n"
_INSTANCE = "1.2.840.10008.1.20.1.1"
_NO_SUCH_OBJECT = 0x0112


class Fails:
    """A behaviour: a status, or what a function does, for the first so many; then all is taken."""

    def __init__(self, times: int, what: int | Behaviour) -> None:
        self.times = times
        self.done = 0
        self.last = 0.0
        self._what = what
        self._lock = threading.Lock()

    def __call__(self, event: evt.Event) -> int:
        """Answer one C-STORE."""
        with self._lock:
            if self.done >= self.times:
                return 0x0000
            self.done += 1
            self.last = time.monotonic()
        return self._what if isinstance(self._what, int) else self._what(event)


class Storescp:
    """DCMTK's storescp, which keeps a file of each object that it takes."""

    def __init__(self, folder: Path, port: int, *options: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._log = folder.with_suffix(f".{time.monotonic_ns()}.log")
        command = [program("storescp"), "-v", "-od", str(folder), "-uf", *options, str(port)]
        with self._log.open("wb") as log:
            self._popen = subprocess.Popen(command, stdout=log, stderr=log)
        wait_for(lambda: _is_listening(port), "storescp")

    def said(self, what: str) -> int:
        """Return how often its log holds a pattern."""
        return len(re.findall(what, self._log.read_text(errors="replace")))

    def reports(self) -> list[bytes]:
        """Return what it and those before it in this folder took."""
        paths = sorted(self._folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        return [path.read_bytes() for path in paths]

    def close(self) -> None:
        """End it."""
        self._popen.kill()
        self._popen.wait()


def _is_listening(port: int) -> bool:
    """Look into the kernel's table: a connection would be one more association."""
    wanted = f":{port:04X} 00000000:0000 0A"
    tables = [Path("/proc/net/tcp").read_text()]
    with suppress(OSError):
        tables.append(Path("/proc/net/tcp6").read_text().replace("0" * 24, ""))
    return any(wanted in table for table in tables)


def _send(world: World, number: int = 4, prefix: str = "") -> Modality:
    modality = Modality(world.port)
    modality.send_all(studies(world.folder / "sent", number, prefix=prefix), 2)
    return modality


def _merged(verdicts: Sequence[Verdict]) -> Verdict:
    first = verdicts[0]
    for other in verdicts[1:]:
        for name in ("lost", "doubled", "stuck"):
            getattr(first, name).extend(getattr(other, name))
    return first


def _require_same_bytes(reports: Sequence[bytes]) -> None:
    """Require that what came again under one SOP Instance UID, which stands in its bytes, is the same."""
    found: dict[bytes, bytes] = {}
    for content in reports:
        uid = re.search(rb"\x02\x00\x03\x00UI..([0-9.]+)", content, re.DOTALL)
        assert uid is not None, "no Media Storage SOP Instance UID"
        assert found.setdefault(uid[1], content) == content, f"{uid[1]!r} came with other bytes"


def _tries(world: World) -> int:
    with world.database.read() as session:
        return int(session.scalar(select(func.sum(Delivery.tries))) or 0)


# What is answered


@dataclass(frozen=True)
class _Bad:
    """A PACS whose first C-STOREs end badly."""

    what: int | Behaviour
    times: int
    sends: int  # all in all, for four reports


def _late(event: evt.Event) -> int:
    """Answer when nobody waits any more."""
    time.sleep(3)
    return 0x0000


def _aborts(event: evt.Event) -> int:
    event.assoc.abort()
    return 0xA700  # nobody hears it


def _takes_the_last_class(event: evt.Event) -> int:
    request: Any = event.request
    return 0x0000 if request.AffectedSOPClassUID == REPORT_CLASSES[-1] else 0x0122


_ANSWERS = {
    "BUSY": _Bad(0xA700, 8, 4 + 8),
    "WARNS": _Bad(0xB000, 4, 4),  # that is Success
    "LATE": _Bad(_late, 3, 4 + 3),
    "ABORTS": _Bad(_aborts, 6, 4 + 6),
    "OLD": _Bad(_takes_the_last_class, 4 * len(REPORT_CLASSES), 4 * len(REPORT_CLASSES)),
}


def _answers(folder: Path, url: str) -> Outcome:
    """Failures, warnings, aborts and answers that come too late, from five destinations at once."""
    bad = {name: Fails(one.times, one.what) for name, one in _ANSWERS.items()}
    with ExitStack() as stack:
        every = {name: stack.enter_context(Pacs(name, fails)) for name, fails in bad.items()}
        ports = {name: pacs.port for name, pacs in every.items()}
        world = stack.enter_context(World(folder, url, ports, _QUICK))
        world.start()
        modality = _send(world)
        verdict = _merged([judge(world, modality.acknowledged, one.reports) for one in every.values()])
        seconds = time.monotonic() - max(fails.last for fails in bad.values())
        for name, one in _ANSWERS.items():
            assert bad[name].done == one.times, f"{name}: only {bad[name].done} of {one.times} faults"
            assert every[name].asked == one.sends, f"{name}: {every[name].asked} sends, not {one.sends}"
            _require_same_bytes(every[name].reports())
        with world.database.read() as session:
            old = select(Delivery.sop_class_uid).where(Delivery.destination == "OLD")
            assert set(session.scalars(old)) == {REPORT_CLASSES[-1]}
    return Outcome(sum(fails.done for fails in bad.values()), verdict, seconds)


# The connection

_AFTER_THE_SEND = (
    Fault("down", 0, "rst"),
    Fault("down", 0, "fin"),
    Fault("down", 20, "rst"),
    Fault("down", 0, "stall"),
    Fault("down", 20, "stall"),
)
"""The PACS has the report and said so; the node cannot know."""

_DURING_THE_SEND = (
    Fault("up", 0, "rst"),
    Fault("up", 100, "fin"),
    Fault("up", 3000, "rst"),
    Fault("up", 3000, "stall"),
    Fault("up", 3000, "drip"),
)


def _in_turn(faults: Sequence[Fault]) -> Callable[[int], Fault | None]:
    return lambda number: faults[number] if number < len(faults) else None


def _wires(
    folder: Path,
    url: str,
    during: Sequence[Fault] = _DURING_THE_SEND,
    after: Sequence[Fault] = _AFTER_THE_SEND,
) -> Outcome:
    """One wire breaks while reports are sent, another after they were, before the answer is read."""
    plans = {"DURING": during, "AFTER": after}
    with ExitStack() as stack:
        every = {name: stack.enter_context(Pacs(name)) for name in plans}
        proxies = {
            name: stack.enter_context(Proxy(every[name].port, _in_turn(plan))) for name, plan in plans.items()
        }
        ports = {name: proxy.port for name, proxy in proxies.items()}
        world = stack.enter_context(World(folder, url, ports, _QUICK))
        world.start()
        modality = _send(world)
        verdict = _merged([judge(world, modality.acknowledged, one.reports) for one in every.values()])
        seconds = time.monotonic() - max(hit for proxy in proxies.values() for hit in proxy.hits)
        for name, plan in plans.items():
            assert len(proxies[name].hits) == len(plan), f"{name}: only {len(proxies[name].hits)} faults"
            _require_same_bytes(every[name].reports())
        sends, expected = every["AFTER"].asked, 4 + len(after)
        assert sends == expected, f"{sends} sends, not {expected}: what was not answered must come again"
    return Outcome(sum(map(len, plans.values())), verdict, seconds)


# DCMTK as the PACS

_STORESCP = {
    "REFUSES": (("--refuse",), "Refusing Association"),
    "ABORTS1": (("--abort-during",), "ABORT initiated"),
    "ABORTS2": (("--abort-after",), "ABORT initiated"),
    "SLEEPS": (("--sleep-during", "3"), "Received Store Request"),
}
"""Options of DCMTK's storescp, and what in its log tells that it did so."""


def _storescp(folder: Path, url: str) -> Outcome:
    """DCMTK's storescp refuses associations, aborts during and after C-STORE, and sleeps too long."""
    if any(shutil.which(name) is None for name in ("storescp",)):
        raise Skipped("DCMTK is not installed here (Debian: apt install dcmtk).")
    ports = {name: free_port() for name in _STORESCP}
    with World(folder, url, ports, _QUICK) as world, ExitStack() as stack:
        bad = {
            name: stack.enter_context(closing(Storescp(folder / name, ports[name], *options)))
            for name, (options, _) in _STORESCP.items()
        }
        world.start()
        modality = _send(world)
        for name, (_, evidence) in _STORESCP.items():
            wait_for(lambda n=name, e=evidence: bad[n].said(e) >= 3, f"{evidence!r} of {name}")  # type: ignore[misc]
        injected = sum(bad[name].said(evidence) for name, (_, evidence) in _STORESCP.items())
        for name, one in bad.items():
            one.close()
            for path in (folder / name).iterdir():  # what it did not answer
                path.unlink()
        ended = time.monotonic()
        good = [stack.enter_context(closing(Storescp(folder / name, ports[name]))) for name in _STORESCP]
        verdict = _merged([judge(world, modality.acknowledged, one.reports) for one in good])
        seconds = time.monotonic() - ended
        for one in good:
            assert len(one.reports()) == 4, f"{len(one.reports())} reports instead of 4"
        return Outcome(injected, verdict, seconds)


# Several destinations


@contextmanager
def _silent(port: int) -> Iterator[None]:
    """Listen, and say nothing to who connects."""
    with socket.create_server(("127.0.0.1", port)):
        yield


def _dead_beside_healthy(folder: Path, url: str) -> Outcome:
    """One destination is down, one says nothing, one takes the association and never answers; one is well."""
    down, silent = free_port(), free_port()
    is_mute = threading.Event()
    is_mute.set()

    def mute(event: evt.Event) -> int:
        deadline = time.monotonic() + 5
        while is_mute.is_set() and time.monotonic() < deadline:
            time.sleep(0.05)
        return 0xA700 if is_mute.is_set() else 0x0000

    with Pacs("WELL") as well, Pacs("MUTE", mute) as mute_pacs, ExitStack() as stack:
        ports = {"DOWN": down, "SILENT": silent, "MUTE": mute_pacs.port, "WELL": well.port}
        world = stack.enter_context(World(folder, url, ports, _QUICK))
        with _silent(silent):
            world.start()
            acknowledged = set()
            for round_ in range(4):
                modality = _send(world, 2, prefix=f"r{round_}-")
                acknowledged |= modality.acknowledged
                expected = 2 * (round_ + 1)
                wait_for(lambda n=expected: len(well.held) >= n, "reports at the PACS that is well", _SOON)  # type: ignore[misc]
                time.sleep(1)
        injected = _tries(world)
        assert injected >= 10, f"only {injected} tries failed"
        is_mute.clear()
        others = [stack.enter_context(Pacs(name, port=ports[name])) for name in ("DOWN", "SILENT")]
        ended = time.monotonic()
        every = [well, mute_pacs, *others]
        verdict = _merged([judge(world, acknowledged, one.reports) for one in every])
        seconds = time.monotonic() - ended
        assert len(well.held) == 8, f"{len(well.held)} reports instead of 8"
        return Outcome(injected, verdict, seconds)


def _down_for_long(folder: Path, url: str) -> Outcome:
    """The only PACS is not there; more studies come than one association takes at once."""
    with Pacs() as pacs, World(folder, url, {"PACS": pacs.port}, _QUICK) as world:
        pacs.stop()
        world.start()
        modality = _send(world, 40)
        time.sleep(8)
        injected = _tries(world)
        pacs.start()
        ended = time.monotonic()
        verdict = judge(world, modality.acknowledged, pacs.reports)
        outcome = Outcome(injected, verdict, time.monotonic() - ended)
        assert injected >= 40, f"only {injected} tries failed"
        assert pacs.asked == 40, f"{pacs.asked} sends instead of 40"
        return outcome


# Storage commitment


class Committing(Pacs):
    """A PACS that offers storage commitment.

    Parameters
    ----------
    answer
        What is done about the request of a number, from 0: one of `Committing`'s methods, or nothing.
    """

    def __init__(self, answer: Callable[[Committing, int, Association, Dataset], None]) -> None:
        super().__init__(commits=True)
        self.requests = 0
        self.told: list[int | None] = []
        self.unreachable = 0
        self.node_port = 0
        self._answer = answer

    def _handlers(self) -> list[Any]:
        return [*super()._handlers(), (evt.EVT_N_ACTION, self._on_request)]

    def _on_request(self, event: evt.Event) -> tuple[int, None]:
        with self._lock:
            number, self.requests = self.requests, self.requests + 1
        arguments = (self, number, event.assoc, event.action_information)
        threading.Thread(target=self._answer, args=arguments, daemon=True).start()
        return 0x0000, None

    def tell_here(self, association: Association, asked: Dataset, failure: int | None = None) -> None:
        """Answer over the association of the request."""
        time.sleep(0.2)
        with suppress(RuntimeError, ValueError):
            self._tell(association, asked, failure)

    def tell_node(self, asked: Dataset, failure: int | None = None) -> None:
        """Answer over an association of its own."""
        ae = AE(self.name)
        ae.connection_timeout = ae.acse_timeout = ae.dimse_timeout = 5
        ae.add_requested_context(COMMITMENT)
        roles: list[Any] = [build_role(COMMITMENT, scp_role=True)]
        association = ae.associate("127.0.0.1", self.node_port, ae_title="PACS_NODE", ext_neg=roles)
        if not association.is_established:
            self.unreachable += 1
            return
        self._tell(association, asked, failure)
        association.release()

    def _tell(self, association: Association, asked: Dataset, failure: int | None) -> None:
        said = Dataset()
        said.TransactionUID = asked.TransactionUID
        items = list(asked.ReferencedSOPSequence)
        if failure is None:
            said.ReferencedSOPSequence = items
        else:
            for item in items:
                item.FailureReason = failure
            said.FailedSOPSequence = items
        kind = 1 if failure is None else 2
        status, _ = association.send_n_event_report(said, kind, COMMITMENT, _INSTANCE)
        self.told.append(status.get("Status"))


def _here(pacs: Committing, number: int, association: Association, asked: Dataset) -> None:
    """Answer over the association of the request, before the node releases it."""
    pacs.tell_here(association, asked)


def _only_from_the_third_on(pacs: Committing, number: int, association: Association, asked: Dataset) -> None:
    """Say nothing to two requests; the question is put again under another Transaction UID."""
    if number >= 2:
        pacs.tell_here(association, asked)


def _lost_at_first(pacs: Committing, number: int, association: Association, asked: Dataset) -> None:
    """Say that none of the objects is there until that was heard: they are sent again."""
    pacs.tell_node(asked, None if 0 in pacs.told else _NO_SUCH_OBJECT)


def _to_the_node(pacs: Committing, number: int, association: Association, asked: Dataset) -> None:
    """Tell the node's receiver, once for each request, whether anybody listens or not."""
    pacs.tell_node(asked)


_COMMITTING = {
    "HERE": _here,
    "SILENT": _only_from_the_third_on,
    "LOST": _lost_at_first,
    "NODE": _to_the_node,
}


def _commits(folder: Path, url: str) -> Outcome:
    """Four destinations commit in their ways, while the receiver of the node is dead for some time."""
    with ExitStack() as stack:
        every = {name: stack.enter_context(Committing(how)) for name, how in _COMMITTING.items()}
        world = stack.enter_context(World(folder, url, {name: pacs.port for name, pacs in every.items()}))
        for pacs in every.values():
            pacs.node_port = world.port
        world.start()
        modality = _send(world)
        world.kill("receive")
        wait_for(lambda: every["NODE"].unreachable >= 1, "an answer that nobody hears")
        wait_for(lambda: len(every["LOST"].held) == 4, "the reports")
        world.start("receive")
        ended = time.monotonic()
        verdict = _merged([judge(world, modality.acknowledged, one.reports) for one in every.values()])
        seconds = time.monotonic() - ended
        with world.database.read() as session:
            states = session.execute(select(Delivery.destination, Delivery.state)).all()
        verdict.stuck += [f"{name}: delivery is {state}" for name, state in states if state != "committed"]
        assert len(states) == 4 * len(every), f"{len(states)} deliveries"
        for name, pacs in every.items():
            sends = pacs.asked
            assert sends > 4 if name == "LOST" else sends == 4, f"{name}: {sends} sends"
            _require_same_bytes(pacs.reports())
        unanswered = every["SILENT"].requests - len(every["SILENT"].told)
        unheard = every["NODE"].unreachable + every["LOST"].unreachable
        lost = every["LOST"].asked - 4
        assert unanswered >= 2, f"{unanswered} requests were not answered"
        return Outcome(unanswered + unheard + lost, verdict, seconds)


def _commit_never(folder: Path, url: str) -> Outcome:
    """No request is ever answered: reports stay delivered, are not sent again, and a person can see it."""
    short = _QUICK + "commit_seconds = 1\ngive_up_hours = 0.0025"
    pacs = Committing(lambda *_: None)
    with pacs, World(folder, url, {"PACS": pacs.port}, short) as world:
        world.start()
        modality = _send(world, 2)
        started = time.monotonic()
        verdict = judge(world, modality.acknowledged, pacs.reports, expected_failures=2)
        with world.database.read() as session:
            states = sorted(session.scalars(select(Delivery.state)))
        assert states == ["delivered"] * 2, states
        assert pacs.asked == 2, f"{pacs.asked} sends instead of 2"
        return Outcome(pacs.requests, verdict, time.monotonic() - started)


SCENARIOS = [
    Scenario("destinations: bad answers", _answers),
    Scenario(
        "destinations: the wire breaks",
        _wires,
        quick=partial(_wires, during=_DURING_THE_SEND[2:3], after=_AFTER_THE_SEND[-1:]),
    ),
    Scenario("destinations: DCMTK's storescp misbehaves", _storescp, ("sqlite",)),
    Scenario("destinations: down for long", _down_for_long, ("postgresql",)),
    Scenario("destinations: three dead beside a healthy one", _dead_beside_healthy, ("sqlite",)),
    Scenario("storage commitment: late, lost, unheard", _commits),
    Scenario("storage commitment: never", _commit_never, ("sqlite",)),
]
