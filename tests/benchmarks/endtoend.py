"""From the last byte of a study to Success for its report: how long, how many, and where time goes."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from pynetdicom import AE, evt

from pacs_node.demo.peers import free_port, shut_down
from pacs_node.reporting.report import REPORT_CLASSES
from tests.benchmarks.ingest import Receiver, node, peak_mebibytes, send
from tests.benchmarks.objects import radiographs, renew

_QUIET_SECONDS = 1.0
_SIDE = 2048  # 8 MB
_WAIT_SECONDS = 180.0
_STAGES = ("wait for the scorer, decode, score", "quiet period", "make the report", "send it")
_STORED, _DELIVERED = "instance stored", "report delivered"
_EVENTS = (_STORED, "instance scored", "report made", _DELIVERED)


@dataclass(frozen=True)
class Load:
    """What came of studies that were sent in one way.

    Attributes
    ----------
    name
        How.
    seconds
        For each study, from Success for its image to Success for its report, less the quiet period.
    stages
        Median seconds of each of the stages.
    """

    name: str
    seconds: Sequence[float]
    stages: Sequence[float]

    @property
    def median(self) -> float:
        """Median seconds beyond the quiet period."""
        return median(self.seconds)

    @property
    def p99(self) -> float:
        """99th percentile of the seconds beyond the quiet period."""
        return float(np.percentile(self.seconds, 99))


@dataclass(frozen=True)
class EndToEnd:
    """All figures; rates are in studies, of one image of 8 MB each, per minute.

    Attributes
    ----------
    cpu_seconds
        Of each kind of process, for one study at saturation.
    peak_mebibytes
        Largest resident set of each process.
    """

    idle: Load
    busy: Load
    saturation: float
    ingest_alone: float
    scoring_alone: float
    cpu_seconds: Mapping[str, float]
    peak_mebibytes: Mapping[str, int]

    @property
    def share(self) -> float:
        """Saturation as a share of the slowest part alone."""
        return self.saturation / min(self.ingest_alone, self.scoring_alone)


class Pacs:
    """A storage SCP that remembers when the report of each study came."""

    def __init__(self) -> None:
        self.port = free_port()
        self.arrived: dict[str, float] = {}
        self._ae = AE("PACS")
        for sop_class in REPORT_CLASSES:
            self._ae.add_supported_context(sop_class)

    @contextmanager
    def running(self) -> Iterator[Pacs]:
        handlers: list[Any] = [(evt.EVT_C_STORE, self._on_c_store)]
        self._ae.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)
        try:
            yield self
        finally:
            shut_down(self._ae)

    @property
    def section(self) -> str:
        """How it stands in config.toml."""
        return (
            f'[[destinations]]\nname = "PACS"\nae_title = "PACS"\nhost = "127.0.0.1"\nport = {self.port}\n'
            'commitment = "off"\n'
        )

    def _on_c_store(self, event: evt.Event) -> int:
        self.arrived[str(event.dataset.StudyInstanceUID)] = time.time()
        return 0x0000


@dataclass(frozen=True)
class _Site:
    """A node, its log, and the PACS that it sends to."""

    receiver: Receiver
    pacs: Pacs
    log: Path


def end_to_end(scratch: Path, studies: int) -> EndToEnd:
    """Run a whole node with SQLite, idle, at saturation, and at 80 % of it."""
    files = radiographs(scratch / "studies", studies, _SIDE, drawn=8)
    pacs = Pacs()
    sections = f"[study]\nquiet_seconds = {_QUIET_SECONDS}\n[receive]\nmin_free_mebibytes = 0\n{pacs.section}"
    with pacs.running(), node(scratch / "node", sections, "receive,score,deliver") as receiver:
        site = _Site(receiver, pacs, scratch / "node" / "node.log")
        idle = _load("idle", site, files[:20], None)
        before = _cpu_seconds(receiver.pids)
        per_minute = _saturation(site, files)
        after = _cpu_seconds(receiver.pids)
        busy = _load("80 % of saturation", site, files, 0.8 * per_minute / 60)
        peaks = {role_of(pid): peak_mebibytes(pid) for pid in receiver.pids}
        spent = {role: (after[role] - before[role]) / len(files) for role in after}
    with node(scratch / "receiver") as receiver:
        ingest_alone = 60 * send(files, receiver, 4)
    return EndToEnd(idle, busy, per_minute, ingest_alone, 60 * _scoring_alone(files), spent, peaks)


def _saturation(site: _Site, files: Sequence[Path]) -> float:
    """Send everything at once; return studies per minute, the quiet period of the last one left out."""
    arrived = site.pacs.arrived
    arrived.clear()
    started = time.time()
    send(files, site.receiver, 4)
    wait_for_reports(site.pacs, len(files))
    return 60 * len(files) / (max(arrived.values()) - started - _QUIET_SECONDS)


def _load(name: str, site: _Site, files: Sequence[Path], per_second: float | None) -> Load:
    """Send one study after the other, so many per second, or each when the report of the last one came."""
    arrived = site.pacs.arrived
    arrived.clear()
    skipped = site.log.stat().st_size
    renew(files)
    senders = []
    due = time.monotonic()
    for number, path in enumerate(files, 1):
        sender = threading.Thread(target=send, args=([path], site.receiver, 1), kwargs={"is_new": True})
        sender.start()
        senders.append(sender)
        if per_second is None:
            wait_for_reports(site.pacs, number)
        else:
            due += 1 / per_second
            time.sleep(max(0.0, due - time.monotonic()))
    for sender in senders:
        sender.join()
    wait_for_reports(site.pacs, len(files))
    moments = _moments(site.log, skipped, len(files))
    beyond = [arrived[study] - times[0] - _QUIET_SECONDS for study, times in moments.items()]
    gaps = np.median([_stages(times) for times in moments.values()], axis=0)
    return Load(name, beyond, gaps.tolist())


def wait_for_reports(pacs: Pacs, number: int) -> None:
    """Return when so many reports have come since the last time that they were forgotten."""
    deadline = time.monotonic() + _WAIT_SECONDS
    while len(pacs.arrived) < number:
        if time.monotonic() > deadline:
            raise RuntimeError(f"Only {len(pacs.arrived)} of {number} reports came")
        time.sleep(0.005)


def _moments(log: Path, skipped: int, number: int) -> dict[str, list[float]]:
    """Return when each study was stored, scored, reported and delivered, by the log of the node."""
    deadline = time.monotonic() + _WAIT_SECONDS
    while time.monotonic() < deadline:
        lines = log.read_bytes()[skipped:].decode().splitlines()
        found = _found([json.loads(line) for line in lines if line.endswith("}")])
        # What was sent before may have its last line here; the last line of a report may be still to come
        whole = {study: times for study, times in found.items() if len(times) == len(_EVENTS)}
        if len(whole) >= number:
            return {study: [times[name] for name in _EVENTS] for study, times in whole.items()}
        time.sleep(0.05)
    raise RuntimeError(f"The log tells of {len(whole)} of {number} studies")


def _found(events: Sequence[Mapping[str, str]]) -> dict[str, dict[str, float]]:
    """Return the moment of each event of each study."""
    study_of = {e["sop_instance_uid"]: e["study"] for e in events if e["event"] == _STORED}
    found: dict[str, dict[str, float]] = {}
    for event in events:
        study = event.get("study") or study_of.get(event.get("sop_instance_uid", ""))
        if event["event"] in _EVENTS and study is not None:
            moment = datetime.fromisoformat(event["timestamp"]).replace(tzinfo=UTC)
            found.setdefault(study, {})[event["event"]] = moment.timestamp()
    return found


def _stages(times: Sequence[float]) -> list[float]:
    """Return the seconds of `_STAGES`; the quiet period is what is left of it after scoring."""
    stored, scored, made, delivered = times
    quiet_until = max(scored, stored + _QUIET_SECONDS)
    return [b - a for a, b in pairwise((stored, scored, quiet_until, made, delivered))]


def _scoring_alone(files: Sequence[Path]) -> float:
    """Return images per second from file to answer."""
    from classifier.scoring.predict import Predictor

    predictor = Predictor.load()
    batches = [files[at : at + 16] for at in range(0, len(files), 16)]
    predictor.predict(batches[0])
    started = time.perf_counter()
    for batch in batches:
        predictor.predict(batch)
    return len(files) / (time.perf_counter() - started)


def _cpu_seconds(pids: Sequence[int]) -> dict[str, float]:
    """Return the processor time that the processes of each role have had."""
    spent: dict[str, float] = {}
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        role = role_of(pid).split()[0]
        ticks = int(fields[11]) + int(fields[12])
        spent[role] = spent.get(role, 0.0) + ticks / os.sysconf("SC_CLK_TCK")
    return spent


def role_of(pid: int) -> str:
    """Return what a process of the node does, with its number where several do that."""
    words = Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8").split("\0")
    number = words[words.index("--number") + 1] if "--number" in words else "0"
    return words[words.index("role") + 1] + (f" {int(number) + 1}" if number != "0" else "")


def picture(found: EndToEnd, path: Path) -> None:
    """Draw where time goes: of a study, beside the quiet period, and of the processors at saturation."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    times, cpu = figure.subplots(2, 1, height_ratios=(2, 1))
    for load in (found.busy, found.idle):
        left = 0.0
        for number, (stage, seconds) in enumerate(zip(_STAGES, load.stages, strict=True)):
            times.barh(load.name, seconds, left=left, color=f"C{number}", label=stage)
            left += seconds
    handles, labels = times.get_legend_handles_labels()
    once = slice(len(_STAGES))
    times.legend(handles[once], labels[once], loc="upper left", bbox_to_anchor=(1, 1), fontsize=8)
    times.set_xlabel("seconds since Success for the image, median of each stage")
    left = 0.0
    for number, (role, seconds) in enumerate(found.cpu_seconds.items()):
        cpu.barh("at saturation", seconds, left=left, color=f"C{number + 4}", label=role)
        left += seconds
    cpu.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8)
    cpu.set_xlabel("processor seconds for a study of 8 MB")
    figure.savefig(path, dpi=120)
