"""What scores loads MONAI and torchvision, and not what these load for others."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch._dynamo", "ignite", "matplotlib", "scipy.signal", "scipy.stats", "sklearn")


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_scoring_loads_nothing_for_others() -> None:
    loaded = "import sys, classifier.scoring.predict; "
    assert run(f"{loaded} print([name for name in {HEAVY!r} if name in sys.modules])") == "[]"
    assert run(f"{loaded} print('monai.transforms' in sys.modules)") == "True"


@pytest.mark.parametrize(
    "later",
    [
        "ignite.engine, matplotlib.pyplot, scipy.signal, sklearn.metrics, torch._dynamo.utils",
        "sys; print(sys.modules['torchvision.ops.roi_align'].is_compile_supported('cpu'))",
    ],
)
def test_whatever_is_hidden_meanwhile_can_be_loaded_later(later: str) -> None:
    found = run(f"import classifier.scoring.predict, {later}")
    assert found in ("", "True", "False")
