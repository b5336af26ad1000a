"""Refusals of one image, and the border at which what a library raises becomes one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from classifier.errors import NotScorable
from classifier.reasons import Reason


def unreadable(detail: str) -> NotScorable:
    """Return the refusal of an image that cannot be read."""
    return NotScorable(Reason.UNREADABLE, detail)


def contradiction(detail: str) -> NotScorable:
    """Return the refusal of an image whose attributes or pixels contradict each other; quote both sides."""
    return NotScorable(Reason.CONTRADICTION, detail)


def too_large(detail: str) -> NotScorable:
    """Return the refusal of an image that would cost too much time or memory."""
    return NotScorable(Reason.TOO_LARGE, detail)


@contextmanager
def translated(action: str) -> Iterator[None]:
    """Turn whatever a library raises on bad input into `NotScorable`.

    Parsers and codecs raise nearly everything (struct.error, IndexError, RuntimeError, MemoryError for a
    corrupt length, RecursionError for deep nesting), and the list changes with their versions.
    """
    try:
        yield
    except NotScorable:
        raise
    except Exception as error:
        raise unreadable(f"{action} failed with {type(error).__name__}") from error
