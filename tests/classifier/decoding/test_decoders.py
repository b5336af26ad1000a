"""Images that hang, crash or fill the process that decodes them are refused, and cost others nothing."""

from __future__ import annotations

import io
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from classifier.config import DecodeLimits, Eligibility
from classifier.decoding import decode, decoders, watchdog
from classifier.decoding.decode import Radiograph
from classifier.decoding.decoders import Decoders, Outcome, Request
from classifier.errors import NotScorable
from classifier.reasons import Reason
from tests.conftest import radiograph, save

RULES = Eligibility()
LIMITS = DecodeLimits(seconds=30, mebibytes=256)
SOON = DecodeLimits(seconds=3)
SABOTAGE = Path(__file__).parents[2] / "faults" / "sabotage"


@pytest.fixture(scope="module")
def two() -> Iterator[Decoders]:
    """Two processes, to which images do what stands in their comments."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(SABOTAGE))
        patch.setenv("DEADLY_IMAGES", "1")
        made = Decoders(2)
        made.start()
        yield made


def image(folder: Path, what: str = "", number: int = 1, limits: DecodeLimits = LIMITS) -> Request:
    """Return what is asked of a file that does something to its decoder."""
    folder.mkdir(exist_ok=True)
    path = save(radiograph(number=number, ImageComments=f"DEADLY: {what}"), folder / f"{what}{number}.dcm")
    return Request(path, RULES, 64, limits)


def good(outcome: Outcome | None) -> bool:
    return isinstance(outcome, Radiograph) and outcome.pixels.shape == (1, 64, 64)


def refusal(outcome: Outcome | None) -> str:
    assert isinstance(outcome, NotScorable), outcome
    assert outcome.reason == Reason.UNREADABLE
    return outcome.detail


# --- what is asked for comes back


@pytest.mark.parametrize("size", [64, None])
def test_images_come_back_as_decoding_here_gives_them(
    two: Decoders, tmp_path: Path, size: int | None
) -> None:
    made = [radiograph(number=n, view=view) for n, view in enumerate(["AP", "AP", "LL", "AP", "AP"])]
    paths = [save(ds, tmp_path / f"{n}.dcm") for n, ds in enumerate(made)]
    found = two.decode([Request(path, RULES, size) for path in [*paths, paths[0]]])
    refused = found.pop(2)
    assert isinstance(refused, NotScorable)
    assert refused.reason == Reason.NOT_FRONTAL
    for outcome, path in zip(found, [*paths[:2], *paths[3:], paths[0]], strict=True):
        here = decode.read(path, RULES, size)
        assert isinstance(outcome, Radiograph)
        assert np.array_equal(outcome.pixels, here.pixels)
        assert (outcome.view, outcome.age) == (here.view, here.age)
        outcome.pixels[:] = 1  # they are the receiver's own


def test_a_file_that_cannot_be_read_is_no_verdict(two: Decoders, tmp_path: Path) -> None:
    gone, folder, fine = two.decode([Request(tmp_path / "gone"), Request(tmp_path), image(tmp_path)])
    assert isinstance(gone, FileNotFoundError)
    assert isinstance(folder, IsADirectoryError)
    assert good(fine)


def test_a_process_that_cannot_be_started_is_no_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    (found,) = Decoders(1).decode([image(tmp_path)])
    assert isinstance(found, ChildProcessError)


# --- what does harm is refused, and others are not


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("hang", "Decoding took longer than 3 s"),
        ("crash", "The decoder process crashed"),
        ("abort", "The decoder process crashed"),
        ("memory", "Decoding needs more memory than 256 MiB"),
        ("error", "Decoding failed with OverflowError in sitecustomize.py"),
    ],
)
def test_what_harms_a_decoder_is_refused_again_and_again_and_its_neighbours_are_not(
    what: str, said: str, two: Decoders, tmp_path: Path
) -> None:
    batch = [image(tmp_path, number=n) for n in range(6)]
    batch[2:2] = [image(tmp_path, what, 9, SOON if what == "hang" else LIMITS)]
    for _ in range(2):
        found = two.decode(batch)
        assert refusal(found.pop(2)).startswith(said)
        assert all(map(good, found))


def test_neighbours_of_an_image_that_hangs_do_not_wait_for_it(two: Decoders, tmp_path: Path) -> None:
    long = DecodeLimits(seconds=20)
    batch = [image(tmp_path, "hang", n, long) for n in (7, 8)] + [image(tmp_path, number=n) for n in range(4)]
    found = two.decode(batch, patience=2)
    started, asked = time.monotonic(), 0
    while not all(good(one) for one in found[2:]):  # where the machine is slow, they too are for later
        found = two.decode(batch, patience=2)
        asked += 1
    assert found[:2] == [None, None]
    assert time.monotonic() - started < 15
    while None in (found := two.decode(batch[:2], patience=2)):
        pass
    assert [refusal(one) for one in found] == ["Decoding took longer than 20 s"] * 2


def test_a_process_that_was_killed_by_another_is_not_the_fault_of_the_image(
    two: Decoders, tmp_path: Path
) -> None:
    request = image(tmp_path, "slow", limits=DecodeLimits(seconds=60))
    future = two.submit(request)
    while not (pids := [pid for pid in children(os.getpid()) if has_slept(pid)]):
        time.sleep(0.05)
    time.sleep(1)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert good(future.result(60))


def children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return found


def has_slept(pid: int) -> bool:
    """Tell whether a process is at an image that is slow: between images it waits for its socket."""
    return "nanosleep" in Path(f"/proc/{pid}/wchan").read_text()


def test_large_files_are_decoded_one_at_a_time(
    two: Decoders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoders, "_LARGE", 0)
    futures = [two.submit(image(tmp_path, "slow", n, DecodeLimits(30))) for n in range(2)]
    most = 0
    while not all(future.done() for future in futures):
        most = max(most, sum(future.running() for future in futures))
        time.sleep(0.01)
    assert most == 1


# --- nothing is left behind


def test_processes_end_with_their_owner(tmp_path: Path) -> None:
    before = {*children(os.getpid())}
    made = Decoders(2)
    made.decode([image(tmp_path, number=n) for n in range(4)])
    mine = {*children(os.getpid())} - before
    assert mine
    del made
    while mine & {*children(os.getpid())}:
        time.sleep(0.05)


HANGING = """
import sys, time
from pathlib import Path
from classifier.config import DecodeLimits
from classifier.decoding.decoders import Decoders, Request

decoders = Decoders(2)
futures = [decoders.submit(Request(Path(path), limits=DecodeLimits(300))) for path in sys.argv[1:]]
futures[-1].result()
print("at work", flush=True)
time.sleep(300)
"""


def test_no_decoder_outlives_a_program_that_was_killed_even_one_that_hangs(tmp_path: Path) -> None:
    paths = [str(image(tmp_path, "hang").path), str(image(tmp_path).path)]
    places = os.pathsep.join([str(SABOTAGE), *sys.path])
    environment = os.environ | {"PYTHONPATH": places, "DEADLY_IMAGES": "1"}
    segments = {*Path("/dev/shm").glob("psm_*")}  # as Python names them; others use the folder meanwhile
    with subprocess.Popen(
        [sys.executable, "-c", HANGING, *paths], stdout=subprocess.PIPE, env=environment
    ) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == b"at work\n"
        left = children(program.pid)
        assert len(left) >= 2
        program.kill()
    while any(Path(f"/proc/{pid}/fd").exists() and is_decoder(pid) for pid in left):
        time.sleep(0.05)
    assert not {*Path("/dev/shm").glob("psm_*")} - segments


def is_decoder(pid: int) -> bool:
    try:
        return b"classifier.decoding.decoder" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def test_a_decoder_never_loads_torch() -> None:
    script = "import sys, classifier.decoding.decoder; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "pydicom" in loaded
    assert not loaded & {"torch", "torchvision", "monai", "openvino", "scipy", "matplotlib", "sqlalchemy"}


# --- a decoder that was led astray


class Harm:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("echo harm",)


@pytest.mark.parametrize("said", [pickle.dumps(Harm()), pickle.dumps(threading.Thread), b"nonsense"])
def test_what_a_decoder_says_makes_no_objects_but_ours(said: bytes) -> None:
    with pytest.raises(pickle.UnpicklingError):
        watchdog._Reader(io.BytesIO(said)).load()
