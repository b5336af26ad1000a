"""`pacs-node demo` shows the product at work and says whether it was what it should be."""

from __future__ import annotations

import re
from pathlib import Path

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


def test_images_of_ones_own_are_scored_and_what_is_none_is_named(tmp_path: Path) -> None:
    images = tmp_path / "images"
    (images / "NORMAL").mkdir(parents=True)
    Image.fromarray(pixels(bits=8).astype(np.uint8)).save(images / "NORMAL" / "one.png")
    (images / "notes.txt").write_text("not an image")
    done = command("demo", "--images", images, "--into", tmp_path / "runs", COLUMNS="120")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"Left out .*notes\.txt: no DICOM, JPEG or PNG file", done.stdout.replace("\n", " "))
    assert re.search(r"[01] of 1 answers agree with the truth", done.stdout)
