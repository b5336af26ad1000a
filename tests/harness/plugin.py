"""What every run of the tests has: limits of time that hurt nobody else, and a look at what is left."""

from __future__ import annotations

import os
from typing import Any, TextIO

import pytest

from tests.harness import workers
from tests.harness.leaks import Leaks
from tests.harness.limits import Limits


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add settings for pyproject.toml."""
    parser.addini("limit_seconds", "how long set-up, call and tear-down may take each", default="480")
    parser.addini("stuck_seconds", "how much longer where no signal can interrupt it", default="60")


def pytest_configure(config: pytest.Config) -> None:
    """Register what this process needs: one that runs tests, or one that hands them out."""
    if memory := workers.memory():
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", memory)  # each fsync on a disk takes milliseconds
    worker: dict[str, Any] | None = getattr(config, "workerinput", None)
    if worker is None and getattr(config.option, "dist", "no") != "no":
        config.pluginmanager.register(workers.Run())
        return
    stacks = workers.join(worker["workerid"]) if worker else _terminal(config)
    limit, stuck = (float(config.getini(f"{name}_seconds")) for name in ("limit", "stuck"))
    config.pluginmanager.register(Limits(limit, stuck, stacks))
    config.pluginmanager.register(Leaks())


def _terminal(config: pytest.Config) -> TextIO:
    """Return standard error as it is when no test captures it."""
    capture = config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        return os.fdopen(os.dup(2), "w")
