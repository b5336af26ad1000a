"""Ten thousand studies through a whole node: whether the memory of any process goes on growing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from tests.benchmarks.endtoend import Pacs, role_of, wait_for_reports
from tests.benchmarks.ingest import node, send
from tests.benchmarks.objects import radiographs

_SIDE = 512  # pixels
_AT_ONCE = 250  # studies between two looks


@dataclass(frozen=True)
class Endurance:
    """Resident sets in MiB, after so many studies, of each process."""

    studies: Sequence[int]
    mebibytes: Mapping[str, Sequence[float]]

    def growth(self, role: str) -> float:
        """Return how many MiB a process has grown since the first tenth, when all caches were full."""
        sizes = self.mebibytes[role]
        return sizes[-1] - sizes[len(sizes) // 10]


def endurance(scratch: Path, studies: int) -> Endurance:
    """Send studies of one image each, so many at once, and look at memory when their reports have come."""
    files = radiographs(scratch / "studies", _AT_ONCE, _SIDE, drawn=8)
    counts: list[int] = []
    sizes: dict[str, list[float]] = {}
    pacs = Pacs()
    sections = f"[study]\nquiet_seconds = 0.5\n[receive]\nmin_free_mebibytes = 0\n{pacs.section}"
    with pacs.running(), node(scratch / "node", sections, "receive,score,deliver") as receiver:
        while not counts or counts[-1] < studies:
            pacs.arrived.clear()
            send(files, receiver, 4)
            wait_for_reports(pacs, len(files))
            counts.append((counts[-1] if counts else 0) + len(files))
            for pid in receiver.pids:
                sizes.setdefault(role_of(pid), []).append(_mebibytes(pid))
    return Endurance(counts, sizes)


def picture(found: Endurance, path: Path) -> None:
    """Draw resident sets over the number of studies."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for role, sizes in found.mebibytes.items():
        axes.plot(found.studies, sizes, label=role)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("studies")
    axes.set_ylabel("resident set, MiB")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path, dpi=120)


def _mebibytes(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS:")).split()[1]) / 1024
