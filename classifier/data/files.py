"""Which files of a folder may be images."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

PICTURES = {".jpg", ".jpeg", ".png"}
_DICOM = {".dcm", ".dicom", ".dic", ".ima", ""}


def candidates(folder: Path) -> list[Path]:
    """Return the files of a folder and its subfolders that may be images, in a stable order.

    Links are followed; a folder inside itself is entered once. Bare UIDs are accepted as names: their
    last part looks like a suffix made of digits.
    """
    return sorted(path for path in _files(folder) if _is_candidate(path))


def is_dicom(path: Path) -> bool:
    """Whether a file says that it is DICOM, by its suffix or by the prefix of PS3.10 section 7.1.

    Raises
    ------
    OSError
        If the file cannot be read.
    """
    if path.suffix.lower() in _DICOM - {""}:
        return True
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def printable(path: Path) -> str:
    """Return a path as printable text, even if its name is in another encoding than the terminal's."""
    return os.fsencode(path).decode("utf-8", "replace")


def _files(folder: Path) -> Iterator[Path]:
    seen: set[str] = set()
    for place, below, names in os.walk(folder, followlinks=True):
        seen.add(os.path.realpath(place))
        below[:] = [name for name in below if os.path.realpath(Path(place, name)) not in seen]
        yield from (path for name in names if (path := Path(place, name)).is_file())


def _is_candidate(path: Path) -> bool:
    suffix = path.suffix.lower()
    is_known = suffix in PICTURES or suffix in _DICOM or suffix[1:].isdecimal()
    return is_known and path.name != "DICOMDIR" and not path.name.startswith(".")
