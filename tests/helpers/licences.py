"""What the product is installed with, and under which licences.

Run it as ``python -m tests.helpers.licences`` for the list.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from typing import Any

from packaging.requirements import Requirement

ALLOWED = (
    *("Apache", "MIT", "BSD", "0BSD", "ISC", "Zlib", "CC0", "BSL-1.0", "Boost", "HPND", "Unlicense"),
    *("PSF", "Python Software Foundation"),
    *("MPL", "Mozilla Public License"),  # files of theirs that are changed must be published; none is
)
"""Words that name licences under which the product may be passed on."""

REFUSED = ("GPL", "General Public License", "Proprietary", "Commons Clause", "SSPL", "Business Source")

BY_NAME = {
    "psycopg": "LGPL-3.0: used unchanged as a library, which its users can replace",
    "psycopg-binary": "LGPL-3.0: used unchanged as a library, which its users can replace",
    "cuda-toolkit": "empty; it names packages of CUDA",
    "pysqlite3": "zlib, by its repository; its metadata say nothing",
    "scipy": "BSD-3-Clause",
}
"""Packages whose licence a person read."""

_PROPRIETARY = "nvidia-"  # CUDA comes with torch, and is installed where the user asks for it


def installed(name: str = "pacs-node", extras: Collection[str] = ()) -> dict[str, Distribution]:
    """Return what a package needs to run, directly or not, as far as it is installed."""
    found: dict[str, Distribution] = {}
    waiting = [(name, frozenset(extras))]
    done: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        key, asked = waiting.pop()
        if (key, asked) in done:
            continue
        done.add((key, asked))
        try:
            found[key] = distribution(key)
        except PackageNotFoundError:
            continue
        for line in found[key].requires or []:
            needed = Requirement(line)
            if needed.marker is None or any(needed.marker.evaluate({"extra": e}) for e in asked or ("",)):
                waiting.append((re.sub(r"[-_.]+", "-", needed.name).lower(), frozenset(needed.extras)))
    return found


def licence(package: Distribution) -> str:
    """Return what the metadata of a package say of its licence, in one line."""
    metadata: Any = package.metadata
    classified = [
        c.rpartition("::")[2].strip() for c in metadata.get_all("Classifier") or [] if c[:7] == "License"
    ]
    said = metadata.get("License-Expression") or "; ".join(classified) or metadata.get("License") or ""
    return " ".join(said.split())[:80]


def is_allowed(name: str, said: str) -> bool:
    """Tell whether a package may be passed on with the product, or is installed by its users themselves."""
    if name in BY_NAME or name.startswith(_PROPRIETARY):
        return True
    return any(word in said for word in ALLOWED) and not any(word in said for word in REFUSED)


def main() -> None:
    """Print the list."""
    for name, package in sorted(installed().items()):
        sys.stdout.write(f"{name:28} {package.version:16} {BY_NAME.get(name) or licence(package)}\n")


if __name__ == "__main__":
    main()
