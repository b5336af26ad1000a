"""Mutated images: each must end in a picture or a named refusal, soon and within little memory.

They are decoded in a process of their own, so that a decoder that ends its process, or never returns, is a
finding and not the end of the run.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import struct
import sys
import time
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from imagecodecs import jpeg2k_encode, jpeg8_encode, jpegls_encode
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    AllTransferSyntaxes,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
)

from classifier.config import Unknown
from classifier.decoding.decode import Eligibility, read
from classifier.errors import NotScorable
from tests.helpers.decoding import COLOUR, image_of, lut, put
from tests.helpers.encodings import drawn

SECONDS = 5.0  # of processor time for one image
MEBIBYTES = 400  # of memory for one image
MAX_PIXELS = 2_000_000
_PATIENCE = 900.0  # seconds without a word after which the process hangs, on a machine that is busy
_MOST_FINDINGS = 20
_REPORTED = 200  # images after which a run tells how far it is

_Random = np.random.Generator

_NUMBERS: tuple[Any, ...] = (
    *(0, 1, 2, -1, 7, 8, 9, 12, 15, 16, 17, 31, 32, 64, 255, 256, 1999, 4095, 10_000, 32767, 32768, 65535),
    *(
        "1e300",
        "-1e300",
        "1e-300",
        "inf",
        "-inf",
        "nan",
        "1" * 16,
        "9" * 400,
        "0.0",
        "1.5",
        "",
        " ",
        "abc",
        "\\",
    ),
    *(2**31, 2**32 - 1, 2**63),
)
_KEYWORDS = (
    *("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel"),
    *("PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "PixelPaddingValue"),
    *("PixelPaddingRangeLimit", "RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth"),
    *("VOILUTFunction", "PresentationLUTShape", "PatientOrientation", "FieldOfViewRotation", "PatientAge"),
    *("ImageType", "BodyPartExamined", "ViewPosition", "RedPaletteColorLookupTableDescriptor"),
    *("VOILUTSequence", "ModalityLUTSequence", "AnatomicRegionSequence", "PixelAspectRatio"),
)
_VRS = ("US", "SS", "DS", "IS", "UL", "FD", "LO", "CS", "UN", "OB", "OW", "SQ", "UT", "UI", "PN", "AT", "FL")
_PHOTOMETRICS = (
    "MONOCHROME1",
    "MONOCHROME2",
    "PALETTE COLOR",
    "RGB",
    "YBR_FULL",
    "YBR_FULL_422",
    "YBR_RCT",
    "HSV",
)


# --- good images


def _good(random: _Random) -> Dataset:
    """Return an image that can be decoded, in any encoding and with any grayscale pipeline."""
    if random.random() < 0.1:
        return _coloured(random)
    ds = drawn(int(random.integers(2**31))).dataset()
    for decorate in random.choice(len(_DECORATIONS), random.integers(0, 3), replace=False):
        _DECORATIONS[decorate](ds, random)
    return ds


def _coloured(random: _Random) -> Dataset:
    syntax = _one(random, (ExplicitVRLittleEndian, JPEGBaseline8Bit, JPEG2000Lossless, JPEGLSLossless))
    ds = image_of(COLOUR, 8, PhotometricInterpretation="RGB")
    if syntax == JPEGBaseline8Bit:
        ds.PhotometricInterpretation = "YBR_FULL_422"
        _encapsulate(ds, syntax, bytes(jpeg8_encode(COLOUR, level=90)))
    elif syntax == JPEG2000Lossless:
        _encapsulate(ds, syntax, bytes(jpeg2k_encode(COLOUR, codecformat="j2k", level=0, reversible=True)))
    elif syntax == JPEGLSLossless:
        _encapsulate(ds, syntax, bytes(jpegls_encode(COLOUR)))
    return ds


def _encapsulate(ds: Dataset, syntax: UID, *frames: bytes) -> None:
    ds.file_meta.TransferSyntaxUID = syntax
    ds.PixelData = encapsulate(list(frames))
    ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True


def _add_window(ds: Dataset, random: _Random) -> None:
    ds.WindowCenter, ds.WindowWidth = int(random.integers(0, 4096)), int(random.integers(2, 5000))


def _add_rescale(ds: Dataset, random: _Random) -> None:
    ds.RescaleSlope, ds.RescaleIntercept = int(random.choice([-2, 1, 3])), int(random.integers(-2000, 2000))


def _add_table(ds: Dataset, random: _Random) -> None:
    keyword = str(random.choice(["VOILUTSequence", "ModalityLUTSequence"]))
    setattr(ds, keyword, [lut(np.arange(4096).astype("<u2"), int(random.integers(0, 65536)), 12)])


def _add_palette(ds: Dataset, random: _Random) -> None:
    ds.PhotometricInterpretation = "PALETTE COLOR"
    for colour in ("Red", "Green", "Blue"):
        ds.add_new(f"{colour}PaletteColorLookupTableDescriptor", "US", [256, int(random.integers(0, 9)), 16])
        ds.add_new(f"{colour}PaletteColorLookupTableData", "OW", np.arange(256).astype("<u2").tobytes())


_DECORATIONS: tuple[Callable[[Dataset, _Random], None], ...] = (
    _add_window,
    _add_rescale,
    _add_table,
    _add_palette,
)


# --- mutations of a data set


def _mutate_attribute(ds: Dataset, random: _Random) -> None:
    keyword = _one(random, _KEYWORDS)
    vr = _one(random, _VRS) if random.random() < 0.3 else dictionary_VR(keyword).split(" or ")[0]
    with contextlib.suppress(Exception):  # what cannot be written is not tried
        put(ds, keyword, vr, _value(random, vr))


def _mutate_table(ds: Dataset, random: _Random) -> None:
    table = Dataset()
    vr = _one(random, ("US", "SS", "DS", "IS", "FD", "UL", "OW"))
    with contextlib.suppress(Exception):
        put(table, "LUTDescriptor", vr, [_value(random, vr) for _ in range(random.integers(1, 5))])
        put(
            table,
            "LUTData",
            _one(random, ("OW", "US", "UN", "DS")),
            random.bytes(2 * int(random.integers(0, 5000))),
        )
    setattr(ds, _one(random, ("VOILUTSequence", "ModalityLUTSequence")), [table] * random.integers(1, 4))


def _mutate_photometric(ds: Dataset, random: _Random) -> None:
    ds.PhotometricInterpretation = _one(random, _PHOTOMETRICS)
    ds.SamplesPerPixel = int(random.integers(1, 5))


def _mutate_syntax(ds: Dataset, random: _Random) -> None:
    ds.file_meta.TransferSyntaxUID = UID(_one(random, tuple(AllTransferSyntaxes)))


def _mutate_pixels(ds: Dataset, random: _Random) -> None:
    """Change some bytes of Pixel Data, most of them in the headers at its beginning."""
    data = bytearray(ds.PixelData)
    reach = len(data) if random.random() < 0.4 else min(len(data), 200)
    for _ in range(random.integers(1, 6)):
        data[random.integers(reach)] = int(random.choice([0, 1, 255, int(random.integers(256))]))
    ds.PixelData = bytes(data)


def _mutate_size(ds: Dataset, random: _Random) -> None:
    """Declare another size in tags and codestream alike, as a bomb does."""
    sides = [int(random.choice([1, 2, 100, 1400, 1999, 60_000])) for _ in range(2)]
    for kind, width in ((">HH", 2**16), (">II", 2**32)):
        old, new = struct.pack(kind, ds.Rows, ds.Columns), struct.pack(kind, *sides)
        ds.PixelData = ds.PixelData.replace(old, new)
        if width > 2**16:  # JPEG 2000 begins with the columns
            ds.PixelData = ds.PixelData.replace(old[4:] + old[:4], new[4:] + new[:4])
    ds.Rows, ds.Columns = sides


def _mutate_fragments(ds: Dataset, random: _Random) -> None:
    whole = bytes(ds.PixelData)
    item = struct.pack("<HHI", 0xFFFE, 0xE000, 0)
    table = item[:4] + struct.pack("<I4I", 16, *random.integers(0, 2**32, 4))
    ds.PixelData = _one(
        random,
        (
            item + whole,
            whole[8:],
            whole + item * int(random.integers(1, 30_000)),
            table + whole[8:],
            whole[: len(whole) // 2],
            whole + whole[8:],
            item[:4] + b"\xff\xff\xff\xff" + whole[8:],
        ),
    )


def _mutate_tree(ds: Dataset, random: _Random) -> None:
    """Add sequences within sequences, or with many items; pydicom writes no deep ones if anything fails."""
    inner = Dataset()
    inner.CodeValue = "1"
    if random.random() < 0.5:
        for _ in range(random.integers(1, 6)):
            outer = Dataset()
            outer.ViewModifierCodeSequence = [inner]
            inner = outer
        ds.ViewCodeSequence = [inner]
    else:
        ds.AnatomicRegionSequence = [Dataset() for _ in range(random.integers(1, 5000))]


_OF_DATA_SETS: tuple[Callable[[Dataset, _Random], None], ...] = (
    *(_mutate_attribute,) * 4,
    *(_mutate_table, _mutate_photometric, _mutate_syntax, *(_mutate_pixels,) * 3, _mutate_size),
    *(_mutate_fragments, _mutate_tree),
)


def _one(random: _Random, choices: Any) -> Any:
    return choices[random.integers(len(choices))]


def _value(random: _Random, vr: str) -> Any:
    if random.random() < 0.1:
        return [_one(random, _NUMBERS) for _ in range(random.integers(2, 5))]
    value = _one(random, _NUMBERS)
    if vr in ("OB", "OW", "UN"):
        return str(value).encode() * int(random.integers(1, 3))
    if vr == "CS" and random.random() < 0.7:
        return _one(
            random, ("L\\F", "R\\H", "F\\L", "X", "LINEAR", "SIGMOID", "INVERSE", "MONOCHROME1", "CHEST")
        )
    return str(value) if vr in ("LO", "CS", "DS", "IS", "UT", "UI", "PN") else value


# --- mutations of a file


def _flip(data: bytes, random: _Random) -> bytes:
    changed = bytearray(data)
    reach = len(data) if random.random() < 0.5 else min(len(data), 2000)
    for position in random.integers(132, reach, random.integers(1, 8)):
        changed[position] = random.integers(256)
    return bytes(changed)


def _cut(data: bytes, random: _Random) -> bytes:
    return data[: random.integers(100, len(data))]


def _double(data: bytes, random: _Random) -> bytes:
    start, end = sorted(random.integers(132, len(data), 2))
    return data[:end] + data[start:]


def _lengthen(data: bytes, random: _Random) -> bytes:
    """Give some element an absurd length."""
    position = int(random.integers(132, min(len(data) - 8, 3000)))
    lengths = (b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\0", b"\xfe\xff\xff\xff")
    length: bytes = _one(random, lengths)
    return data[:position] + length + data[position + 4 :]


def _inflate(data: bytes, random: _Random) -> bytes:
    """Deflate the data set, with many zeros or empty items within."""
    start = 144 + int.from_bytes(data[140:144], "little")
    syntax = DeflatedExplicitVRLittleEndian.encode()
    meta = (
        data[:132]
        + _element(2, 0, b"UL", struct.pack("<I", 8 + len(syntax)))
        + _element(2, 0x10, b"UI", syntax)
    )
    filler = _one(
        random,
        (
            b"",
            _long(0x21, 0x1010, b"OB", bytes(random.integers(1, 150) * 2**20)),
            _long(8, 0x2218, b"SQ", b"\xfe\xff\x00\xe0\0\0\0\0" * int(random.integers(1, 200_000)), 2**32 - 1)
            + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0),
            _element(8, 0x70, b"LO", b"") * int(random.integers(1, 400_000)),
            _long(8, 0x2218, b"SQ", b"\xfe\xff\x00\xe0\xff\xff\xff\xff", 2**32 - 1)
            * int(random.integers(1, 2000)),
        ),
    )
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    parts = [filler, data[start:]] if random.random() < 0.7 else [data[start:], filler]
    return meta + b"".join(map(deflater.compress, parts)) + deflater.flush()


def _element(group: int, element: int, vr: bytes, value: bytes) -> bytes:
    return struct.pack("<HH2sH", group, element, vr, len(value)) + value


def _long(group: int, element: int, vr: bytes, value: bytes, length: int | None = None) -> bytes:
    return struct.pack("<HH2sHI", group, element, vr, 0, len(value) if length is None else length) + value


_OF_FILES: tuple[Callable[[bytes, _Random], bytes], ...] = (*(_flip,) * 4, _cut, _double, _lengthen, _inflate)


def image(seed: int) -> bytes:
    """Return the image of a seed, as a file."""
    random = np.random.default_rng(seed)
    ds = _good(random)
    is_whole = random.random() < 0.05
    for _ in range(0 if is_whole else random.integers(0, 4)):
        with contextlib.suppress(Exception):  # after another mutation, this one may be impossible
            _one(random, _OF_DATA_SETS)(ds, random)
    data = _written(ds)
    if data is None:  # mutated beyond what can be written
        data = drawn(seed).file()
    for _ in range(0 if is_whole else random.integers(0, 2)):
        data = _one(random, _OF_FILES)(data, random)
    return data


def _written(ds: Dataset) -> bytes | None:
    file = io.BytesIO()
    try:
        ds.save_as(file, enforce_file_format=True)
    except Exception:  # noqa: BLE001 - of any kind, for what nobody would write
        return None
    return file.getvalue()


# --- the process that decodes


@dataclass
class _Told:
    """What the decoding process says of one image."""

    seed: int
    outcome: str
    seconds: float = 0.0
    mebibytes: float = 0.0
    trace: str = ""


def _decode_all(pipe: Connection, seeds: range) -> None:
    warnings.simplefilter("ignore")
    for seed in seeds:
        data = image(seed)
        pipe.send(seed)
        pipe.send(_decode(seed, data))
    pipe.send(None)


def _decode(seed: int, data: bytes) -> _Told:
    unknown: Unknown = "score" if seed % 3 else "refuse"
    before, started, trace = _peak(), time.process_time(), ""
    try:
        found = read(io.BytesIO(data), Eligibility(unknown, unknown, MAX_PIXELS), None if seed % 2 else 160)
        outcome = "decoded" if _is_grey(found.pixels) else "no picture"
    except NotScorable as refusal:
        outcome = refusal.reason.value if refusal.detail.isprintable() and refusal.detail else "no detail"
    except BaseException as error:  # noqa: BLE001 - any other is a finding
        outcome, trace = f"raised {type(error).__name__}", traceback.format_exc()
    return _Told(seed, outcome, time.process_time() - started, _peak() - before, trace)


def _is_grey(pixels: np.ndarray[Any, Any]) -> bool:
    return (
        pixels.dtype == np.float32
        and bool(np.isfinite(pixels).all())
        and pixels.min() >= 0
        and pixels.max() <= 1
    )


def _peak() -> float:
    """Return the largest memory since the last call, in MiB, where the system tells it; else 0."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0.0
    peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return int(peak.split()[1]) / 1024


@dataclass
class _Run:
    """One run: what was found, and how often each outcome came."""

    findings: list[str] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)

    def note(self, told: _Told) -> None:
        self.outcomes[told.outcome] += 1
        if self.outcomes.total() % _REPORTED == 0:
            self.report()
        if not (told.outcome.isupper() or told.outcome == "decoded"):
            self.findings.append(f"seed {told.seed}: {told.outcome}\n{told.trace}")
        if told.seconds > SECONDS:
            self.findings.append(f"seed {told.seed}: {told.seconds:.1f} s of processor time ({told.outcome})")
        if told.mebibytes > MEBIBYTES:
            self.findings.append(f"seed {told.seed}: {told.mebibytes:.0f} MiB of memory ({told.outcome})")

    def report(self) -> None:
        """Print what came so far."""
        outcomes = ", ".join(f"{name} {number}" for name, number in self.outcomes.most_common())
        told = f"{self.outcomes.total()} images, {len(self.findings)} findings: {outcomes}"
        print(told, *(finding.splitlines()[0] for finding in self.findings), sep="\n", file=sys.stderr)  # noqa: T201


def run(count: int, seed: int = 0) -> list[str]:
    """Decode the images of so many seeds.

    Returns
    -------
    list of str
        What was found: one text for each crash, hang, exception outside the tree of errors, and image that
        took too long or too much memory.
    """
    found, left = _Run(), range(seed, seed + count)
    while left and len(found.findings) < _MOST_FINDINGS:
        done = _watch(left, found)
        left = range(done + 1, seed + count)
    found.report()
    return found.findings


def _watch(seeds: range, found: _Run) -> int:
    """Decode in a process of its own until it ends; return the last seed."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=_decode_all, args=(theirs, seeds))
    process.start()
    theirs.close()
    current = seeds[0]
    try:
        while ours.poll(_PATIENCE):
            message = ours.recv()
            if message is None:
                return seeds[-1]
            if isinstance(message, _Told):
                found.note(message)
            else:
                current = message
        found.findings.append(f"seed {current}: no answer for {_PATIENCE:.0f} s")
    except EOFError:
        process.join()
        found.findings.append(f"seed {current}: the process ended with {process.exitcode}")
    finally:
        process.kill()
        process.join()
    return current
