"""What scores loads MONAI and torchvision, and not what these load for others."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("torch._dynamo", "ignite", "matplotlib", "scipy.signal", "scipy.stats", "sklearn")


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_scoring_loads_nothing_for_others_and_these_can_be_loaded_later() -> None:
    found = run(
        "import sys, classifier.scoring.predict\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], 'monai.transforms' in sys.modules)\n"
        "import ignite.engine, matplotlib.pyplot, scipy.signal, sklearn.metrics\n"
        "print(sys.modules['torchvision.ops.roi_align'].is_compile_supported('cpu') in (True, False))\n"
        "print('torch._dynamo' in sys.modules)"
    )
    assert found.split("\n") == ["[] True", "True", "True"]
