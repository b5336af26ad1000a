"""Receiving: this node, which flushes and commits before Success, beside Orthanc and DCMTK."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from pacs_node.demo.peers import NodeProcess, free_port
from tests.benchmarks.objects import radiographs, renew
from tests.benchmarks.pair import Pair
from tests.helpers.peers import orthanc, program

_ASSOCIATIONS = (1, 4, 16)
_SIZES = {"0.5 MB": (512, 192), "8 MB": (2048, 32)}  # side in pixels, objects in a round
_LARGE = 10_000  # side in pixels of an object of 200 MB


@dataclass(frozen=True)
class Receiver:
    """Where objects are sent, and whose memory counts."""

    ae_title: str
    port: int
    pids: Sequence[int] = ()


def ingest(scratch: Path, rounds: int) -> Iterator[Pair]:
    """Yield objects per second, each against each peer."""
    with ExitStack() as stack:
        receivers = {name: stack.enter_context(start(scratch / name)) for name, start in _RECEIVERS.items()}
        for size, (side, number) in _SIZES.items():
            files = radiographs(scratch / size, number, side)
            for associations in _ASSOCIATIONS:
                rates: dict[str, list[float]] = {name: [] for name in receivers}
                for _ in range(rounds):
                    for name, receiver in receivers.items():
                        rates[name].append(send(files, receiver, associations))
                for other, wanted in (("Orthanc", 2.0), ("DCMTK storescp --fork", 0.5)):
                    yield Pair(
                        what=f"Receiving, flushed and committed: {size}, {associations} at once",
                        other=other,
                        unit="objects/s",
                        ours=rates["PACS Node"],
                        theirs=rates[other],
                        wanted=wanted,
                    )


def memory(scratch: Path) -> list[int]:
    """Return the most MiB that each receiver of the node ever had, an object of 200 MB among others."""
    with node(scratch / "memory") as receiver:
        small = radiographs(scratch / "many", 400, 512)
        for _ in range(3):
            send(small, receiver, 4)
        send(radiographs(scratch / "large", 1, _LARGE), receiver, 1)
        return [peak_mebibytes(pid) for pid in receiver.pids]


def send(files: Sequence[Path], receiver: Receiver, associations: int, *, is_new: bool = False) -> float:
    """Send files with DCMTK's dcmsend; return objects per second.

    Parameters
    ----------
    is_new
        Whether the receiver does not know them; else their UIDs are renewed before.
    """
    if not is_new:
        renew(files)
    environment = {**os.environ, "TCP_NODELAY": "1"}
    pdu = ["--max-pdu", "131072", "--max-send-pdu", "131072"]
    command = [program("dcmsend"), "-q", *pdu, "-aec", receiver.ae_title, "127.0.0.1", str(receiver.port)]
    shares = [files[at::associations] for at in range(associations)]
    started = time.perf_counter()
    senders = [subprocess.Popen([*command, *map(str, share)], env=environment) for share in shares]
    codes = [sender.wait() for sender in senders]
    seconds = time.perf_counter() - started
    if any(codes):
        raise RuntimeError(f"{receiver.ae_title} did not take all objects")
    return len(files) / seconds


def peak_mebibytes(pid: int) -> int:
    """Return the largest resident set that a process ever had."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(peak.split()[1]) // 1024


@contextmanager
def node(folder: Path, sections: str = "", roles: str = "receive") -> Iterator[Receiver]:
    """Return a context in which this node receives, with SQLite."""
    folder.mkdir(parents=True)
    config, port = folder / "config.toml", free_port()
    config.write_text(f'[node]\nhost = "127.0.0.1"\nport = {port}\n[log]\nformat = "json"\n{sections}')
    with NodeProcess(config, folder / "node.log", roles) as process:
        process.wait_until_ready()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="utf-8")
        yield Receiver("PACS_NODE", port, [int(child) for child in children.split()])


@contextmanager
def _orthanc(folder: Path) -> Iterator[Receiver]:
    os.environ["TCP_NODELAY"] = "1"  # for its DCMTK; without it, each answer is 40 ms late
    with orthanc(folder) as peer:
        yield Receiver(peer.ae_title, peer.port)


@contextmanager
def _dcmtk(folder: Path) -> Iterator[Receiver]:
    folder.mkdir()
    port = free_port()
    command = [program("storescp"), "--fork", "--max-pdu", "131072", "--output-directory", str(folder)]
    process = subprocess.Popen([*command, str(port)], env={**os.environ, "TCP_NODELAY": "1"})
    time.sleep(0.5)
    try:
        yield Receiver("STORESCP", port)
    finally:
        process.terminate()
        process.wait()


_RECEIVERS: dict[str, Callable[[Path], AbstractContextManager[Receiver]]] = {
    "PACS Node": node,
    "Orthanc": _orthanc,
    "DCMTK storescp --fork": _dcmtk,
}
