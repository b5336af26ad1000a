"""Whether a loop that does the work of a process gets on; the process gives heartbeats only while all do."""

from __future__ import annotations

import time


class Progress:
    """Kept by one loop, read by the thread that gives heartbeats.

    Parameters
    ----------
    seconds
        Longer than the loop may take from one step to the next.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._last: float | None = time.monotonic()

    def step(self) -> None:
        """Take note that the loop gets on."""
        self._last = time.monotonic()

    def rest(self) -> None:
        """Take note that the loop has nothing to do until it says otherwise."""
        self._last = None

    @property
    def is_stuck(self) -> bool:
        """Whether the last step is too long ago."""
        last = self._last
        return last is not None and time.monotonic() - last > self._seconds
