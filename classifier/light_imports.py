"""MONAI and torchvision without what they load for others, which costs more than all the rest.

Torchvision loads PyTorch's compiler to ask whether one operator, which no classifier uses, can be compiled.
MONAI loads all its parts, and with them what it may use where it is installed: a training framework, plots,
signal processing. Each process that scores would wait for all that: 12 s of processor time instead of 6.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

_COMPILER = "torch._dynamo.utils"
# Found absent, MONAI does without them: `monai.utils.optional_import`
_OPTIONAL = ("ignite", "matplotlib", "scipy.signal", "sklearn")


@contextmanager
def light_imports() -> Iterator[None]:
    """Import MONAI or torchvision inside; what is hidden meanwhile can be imported afterwards as ever."""
    hidden: dict[str, ModuleType | None] = {_COMPILER: _asked_later()}
    hidden.update(dict.fromkeys(_OPTIONAL))
    hidden = {name: module for name, module in hidden.items() if name not in sys.modules}
    sys.modules.update(hidden)  # type: ignore[arg-type]  # None is how Python marks what cannot be imported
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


def _asked_later() -> ModuleType:
    """Return a stand-in for the compiler's module that loads it when it is asked."""
    module = ModuleType(_COMPILER)

    def is_compile_supported(device_type: str) -> bool:
        return bool(importlib.import_module(_COMPILER).is_compile_supported(device_type))

    module.is_compile_supported = is_compile_supported  # type: ignore[attr-defined]
    return module
