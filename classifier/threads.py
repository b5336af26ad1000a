"""How many threads compute on a processor."""

from __future__ import annotations

import math
import os
from pathlib import Path

_SPINS = "10000"  # some tens of microseconds
_CGROUP = Path("/sys/fs/cgroup")


def granted(cgroup: Path = _CGROUP) -> int:
    """Return how many processors this process may use: those it is bound to, and the quota of its container.

    Parameters
    ----------
    cgroup
        Where the kernel tells the quota (cgroup v2 ``cpu.max``, v1 ``cpu.cfs_quota_us``).
    """
    able = getattr(os, "sched_getaffinity", None)
    bound = len(able(0)) if able is not None else os.cpu_count() or 1
    return max(1, math.ceil(min(bound, _quota(cgroup))))


def share_processors() -> None:
    """Let threads of torch that wait for each other give up their processors soon; before torch is loaded.

    By default they keep them busy for milliseconds, so that threads of other programs, for which they may
    wait, cannot run. Beside two busy programs on two processors, training at 64 pixels took 23 images/s
    instead of 5 to 15; alone, 55 instead of 55. What the environment says comes first.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)


def use(threads: int) -> None:
    """Let torch compute with so many threads; 0 takes those granted, or what OMP_NUM_THREADS says."""
    import torch  # noqa: PLC0415 - heavy

    if threads:
        torch.set_num_threads(threads)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(granted())


def _quota(cgroup: Path) -> float:
    """Return the number of processors that the quota is worth; infinite for none."""
    try:
        quota, period = (cgroup / "cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        try:
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            quota, period = ((cgroup / "cpu" / name).read_text(encoding="ascii").strip() for name in names)
        except OSError:
            return math.inf
    try:
        return float(quota) / float(period) if float(quota) > 0 else math.inf
    except (ValueError, ZeroDivisionError):  # "max"
        return math.inf
