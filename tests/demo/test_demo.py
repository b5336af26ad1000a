"""`pacs-node demo` shows the product at work and says whether it was what it should be."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

from tests.conftest import pixels
from tests.helpers.commands import command


def test_the_drawn_studies_come_out_as_their_truth_asks_for(tmp_path: Path) -> None:
    done = command("demo", "--into", tmp_path, COLUMNS="100")
    assert done.returncode == 0, done.stdout + done.stderr
    for expected in ("negative", "positive", "NOT_FRONTAL", "NOT_CHEST", "UNREADABLE", "OTHER_AGE"):
        assert expected in done.stdout
    assert "9 of 9 answers agree with the truth" in done.stdout
    assert "FAIL" not in done.stdout
    (folder,) = tmp_path.iterdir()
    assert (folder / "pacs_node.sqlite").is_file()
    assert len(list((folder / "pacs").glob("*.dcm"))) == 8
    assert str(folder / "pacs_node.sqlite") in done.stdout
    assert re.search(r"serve --roles web .*\n *and then http://127\.0\.0\.1:\d+/$", done.stdout.rstrip())


def test_the_pages_stay_open_until_a_person_has_seen_enough(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    Image.fromarray(pixels(bits=8).astype(np.uint8)).save(images / "one.png")
    arguments = ["demo", "--web", "--images", images, "--into", tmp_path / "runs"]
    program = [sys.executable, "-m", "pacs_node", *map(str, arguments)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True, bufsize=1) as demo:
        assert demo.stdout is not None
        address = next(line.split()[1] for line in demo.stdout if line.strip().startswith("Open "))
        assert "1 study" in httpx.get(address, timeout=120).text
        demo.send_signal(signal.SIGINT)
        demo.stdout.read()
    assert demo.returncode == 0


def test_images_of_ones_own_are_scored_and_what_is_none_is_named(tmp_path: Path) -> None:
    images = tmp_path / "images"
    (images / "NORMAL").mkdir(parents=True)
    Image.fromarray(pixels(bits=8).astype(np.uint8)).save(images / "NORMAL" / "one.png")
    (images / "notes.txt").write_text("not an image")
    done = command("demo", "--images", images, "--into", tmp_path / "runs", COLUMNS="120")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"Left out .*notes\.txt: no DICOM, JPEG or PNG file", done.stdout.replace("\n", " "))
    assert re.search(r"[01] of 1 answers agree with the truth", done.stdout)
