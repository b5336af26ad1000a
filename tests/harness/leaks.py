"""What a test leaves behind fails that test, with the stack that made it, and not the one that comes after.

A socket that listens, a thread and a program belong to the test that was running when they began, or to the
fixture of a module or of the session, and must end with it. The threads of an executor end with the executor,
which may belong to someone else.
"""

from __future__ import annotations

import gc
import socket
import subprocess
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Generator, Iterator
from concurrent.futures.thread import _worker as of_an_executor
from dataclasses import dataclass
from typing import Any

import pytest

_PATIENCE_SECONDS = 30.0  # for threads that are about to end; only one that leaks takes so long
_FRAMES = 16
_HARNESS = ("/_pytest/", "/pluggy/", "/xdist/", "/execnet/", "/threading.py", "/harness/", "<frozen")


@dataclass(frozen=True)
class _Begun:
    """One thing that must end.

    Attributes
    ----------
    thing
        Weak, for what is gone is closed, or told of by Python.
    owner
        The fixture that began it; None for the test.
    """

    kind: str
    thing: weakref.ReferenceType[Any]
    stack: traceback.StackSummary
    owner: object


class Leaks:
    """Hooks that look, after a test and after a fixture of a wider scope, for what has not ended."""

    def __init__(self) -> None:
        self._begun: list[_Begun] = []
        self._owners: list[object] = [None]
        self._watch(socket.socket, "listen", "socket that listens")
        self._watch(threading.Thread, "start", "thread")
        self._watch(subprocess.Popen, "__init__", "program")

    def _watch(self, of: type, method: str, kind: str) -> None:
        original: Callable[..., Any] = getattr(of, method)

        def watched(thing: Any, *arguments: Any, **named: Any) -> Any:
            stack = traceback.StackSummary.extract(
                traceback.walk_stack(None), limit=_FRAMES, lookup_lines=False
            )
            self._begun.append(_Begun(kind, weakref.ref(thing), stack, self._owners[-1]))
            return original(thing, *arguments, **named)

        setattr(of, method, watched)

    def pytest_collection_finish(self) -> None:
        """Spare the many objects of imported modules from the collections that follow."""
        gc.collect()
        gc.freeze()

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Generator[None, Any, Any]:
        """Note whose is what begins now."""
        self._owners.append(self._owners[-1] if fixturedef.scope == "function" else fixturedef)
        try:
            return (yield)
        finally:
            self._owners.pop()

    def pytest_fixture_post_finalizer(self, fixturedef: pytest.FixtureDef[Any]) -> None:
        """Look for what a fixture of a wider scope left."""
        if fixturedef.scope != "function":
            self._look(fixturedef, f"The fixture {fixturedef.argname}")

    @pytest.fixture(autouse=True)
    def nothing_is_left(self) -> Iterator[None]:
        """Look for what a test left, after all other fixtures of the test have ended."""
        yield
        self._look(None, "The test")

    def _look(self, owner: object, who: str) -> None:
        gc.collect()  # of what is unclosed and unreachable, Python tells at once
        self._assert_ended(owner, who)

    def _assert_ended(self, owner: object, who: str) -> None:
        mine = [begun for begun in self._begun if begun.owner is owner]
        if not mine:
            return
        self._begun = [begun for begun in self._begun if begun.owner is not owner]
        deadline = time.monotonic() + _PATIENCE_SECONDS
        left = [begun for begun in mine if not _ended(begun.thing(), deadline)]
        for begun in left:
            _end(begun.thing())
        if left:
            pytest.fail("\n".join(_told(begun, who) for begun in left), pytrace=False)


def _ended(thing: Any, deadline: float) -> bool:
    if thing is None:
        return True
    if isinstance(thing, socket.socket):
        return thing.fileno() == -1
    if _decodes(thing):
        return True
    if isinstance(thing, threading.Thread):
        if getattr(thing, "_target", None) is of_an_executor:
            return True
        thing.join(max(0, deadline - time.monotonic()))
        return not thing.is_alive()
    return not thing._child_created or thing.poll() is not None


def _decodes(thing: Any) -> bool:
    """Tell what belongs to the decoders that a program shares; they end with the last who uses them."""
    if isinstance(thing, threading.Thread):
        return thing.name == "decoder"
    return isinstance(thing, subprocess.Popen) and "classifier.decoding.decoder" in thing.args  # type: ignore[operator]


def _end(thing: Any) -> None:
    """End it, so that no other test meets it; a thread cannot be ended."""
    if isinstance(thing, socket.socket):
        thing.close()
    elif isinstance(thing, subprocess.Popen):
        thing.kill()
        thing.wait()


def _told(begun: _Begun, who: str) -> str:
    frames = [frame for frame in begun.stack if not any(part in frame.filename for part in _HARNESS)]
    frames.reverse()
    return f"{who} left a {begun.kind}: {begun.thing()!r}; begun at\n{''.join(traceback.format_list(frames))}"
