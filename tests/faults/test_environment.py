"""The shorter form of the faults around the node: disks, databases, peers, images, machines."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import pytest

from tests.faults import databases, destinations, hangs, hosts, modalities, poison, storage
from tests.faults.scenario import Scenario, Skipped

_MODULES = (storage, databases, destinations, modalities, hosts, hangs, poison)
_SHORT = [one for one in chain.from_iterable(module.SCENARIOS for module in _MODULES) if one.quick]


@pytest.mark.parametrize(
    ("scenario", "backend"),
    [pytest.param(one, one.databases[0], id=one.name) for one in _SHORT],
    indirect=["backend"],
)
def test_nothing_is_lost_doubled_or_stuck(
    scenario: Scenario, backend: str, empty_url: str, tmp_path: Path
) -> None:
    assert scenario.quick is not None
    try:
        outcome = scenario.quick(tmp_path / "node", empty_url)
    except Skipped as why:
        pytest.skip(str(why))
    assert outcome.injected
    assert outcome.verdict.is_good, str(outcome.verdict)
