"""Labelled images: folders and manifests are read as people mean them, and no patient is on both sides."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path

import pytest

from classifier.data import examples as data
from classifier.data.images import decode_all, in_processes
from classifier.errors import DataError
from tests.conftest import radiograph, save
from tests.helpers.datasets import folder, picture


def test_the_patient_is_read_from_file_names_and_from_dicom(tmp_path: Path) -> None:
    assert data.patient_of(Path("person1001_bacteria_2932.jpeg")) == "person1001"
    assert data.patient_of(Path("IM-0115-0001.jpeg")) == data.patient_of(Path("NORMAL2-IM-0115-0001.jpeg"))
    assert data.patient_of(Path("00000013_004.png")) == "00000013"
    assert data.patient_of(Path("anything.png")) == "anything"
    assert data.patient_of(save(radiograph(study="7"), tmp_path / "x.dcm")) == "PID-7"


def test_a_folder_below_a_class_is_one_patient_s_whatever_the_names_of_its_files(tmp_path: Path) -> None:
    for label in ("NORMAL", "PNEUMONIA"):
        picture(tmp_path / label / "p1" / "study1" / "frontal.png")
        picture(tmp_path / label / "p1" / "study2" / "frontal.png")
        picture(tmp_path / label / f"p2{label}" / "IM-0001-0001.png")
        picture(tmp_path / label / f"p3{label}" / "IM-0001-0001.png")
        picture(tmp_path / label / f"p3{label}" / "IM-0002-0001.png")
        picture(tmp_path / label / "batch" / "person2_virus_1.png")
        picture(tmp_path / label / "person3_virus_1.png")
        picture(tmp_path / label / f"alone{label}.png")
    found = Counter((example.label, example.patient) for example in data.load(tmp_path))
    assert found[0, "p1"] == found[1, "p1"] == 2
    assert found[0, "p2NORMAL"] == found[1, "p2PNEUMONIA"] == 1
    assert found[0, "p3NORMAL"] == found[1, "p3PNEUMONIA"] == 2
    assert found[0, "person3"] == found[1, "person3"] == 1
    assert found[0, "aloneNORMAL"] == 1
    assert found[0, "batch"] == found[1, "batch"] == 1


def test_it_is_said_by_what_patients_are_told_apart(tmp_path: Path) -> None:
    root = folder(tmp_path / "known", patients=2)
    assert data.told_apart(data.load(root)) == "by file names of a public set, such as person12_virus_3"
    picture(root / "NORMAL" / "p1" / "IM-0001-0001.png")
    assert "by a folder for each patient (1 images)" in data.told_apart(data.load(root))


def test_a_patient_whose_name_is_a_formula_comes_back_from_a_manifest(tmp_path: Path) -> None:
    image = picture(tmp_path / "a.png")
    made = [data.Example(image, 1, "=1+1", "train"), data.Example(picture(tmp_path / "b.png"), 0, "'p")]
    data.write_manifest(tmp_path / "set.csv", made)
    assert ",'=1+1," in (tmp_path / "set.csv").read_text()
    assert [example.patient for example in data.load(tmp_path / "set.csv")] == ["=1+1", "'p"]


def test_dicom_files_are_found_whatever_their_names_and_behind_links(tmp_path: Path) -> None:
    there = tmp_path / "elsewhere"
    there.mkdir()
    save(radiograph(study="1"), there / "IM00001")
    save(radiograph(study="2"), there / "1.2.826.0.1.7")
    save(radiograph(study="3"), there / "old.IMA")
    (there / "README").write_text("None of ours.")
    (there / "LICENSE.0").write_text("Nor this.")
    root = tmp_path / "set"
    picture(root / "NORMAL" / "a.png")
    (root / "PNEUMONIA").mkdir()
    (root / "PNEUMONIA" / "linked").symlink_to(there)
    (there / "round").symlink_to(root / "PNEUMONIA")  # a circle
    found = {example.patient for example in data.load(root) if example.label}
    assert found == {"PID-1", "PID-2", "PID-3"}


@pytest.mark.parametrize(
    ("row", "what"),
    [("./a.png,1,A,train", "label"), ("a.png,0,B,train", "patient"), ("link.png,0,A,val", "split")],
)
def test_a_file_that_is_there_again_as_something_else_is_refused(row: str, what: str, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        picture(tmp_path / name)
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    manifest = tmp_path / "set.csv"
    lines = ["path,label,patient,split", "a.png,0,A,train", "b.png,1,C,val"]
    manifest.write_text("\n".join([*lines, "a.png,0,A,train"]))  # the same twice is no contradiction
    assert len(data.load(manifest)) == 3
    manifest.write_text("\n".join([*lines, row]))
    with pytest.raises(DataError, match=f"occurs twice, with a different {what}; keep one of them"):
        data.load(manifest)


def test_a_name_that_no_text_file_can_hold_is_refused(tmp_path: Path) -> None:
    picture(tmp_path / "NORMAL" / "a.png")
    picture(tmp_path / "PNEUMONIA" / os.fsdecode(b"\xe9.png"))
    with pytest.raises(DataError, match="is not in UTF-8; rename the file or folder"):
        data.load(tmp_path)


def test_a_folder_of_classes_is_split_by_patient_in_both_classes(tmp_path: Path) -> None:
    examples = data.load(folder(tmp_path))
    made = data.split(examples, 0.25, seed=1)
    counts = Counter((e.split, e.label) for e in made)
    assert counts == {("train", 0): 30, ("train", 1): 30, ("val", 0): 10, ("val", 1): 10}
    sides = {side: {e.patient for e in made if e.split == side} for side in ("train", "val")}
    assert not sides["train"] & sides["val"]


def test_the_split_depends_on_the_seed_and_not_on_the_order(tmp_path: Path) -> None:
    examples = data.load(folder(tmp_path))
    one, again = data.split(examples, 0.25, seed=1), data.split(examples[::-1], 0.25, seed=1)
    assert data.digest(one) == data.digest(again)
    assert data.digest(one) != data.digest(data.split(examples, 0.25, seed=2))


def test_a_test_set_is_kept_apart_and_the_rest_is_split_anew(tmp_path: Path) -> None:
    for name in ("train", "val", "test"):
        folder(tmp_path / name, patients=3)
    splits = Counter(example.split for example in data.load(tmp_path))
    assert splits == {"": 24, "test": 12}


def test_a_manifest_that_was_written_is_read_back(tmp_path: Path) -> None:
    made = data.split(data.load(folder(tmp_path / "set")), 0.25, seed=1)
    data.write_manifest(tmp_path / "split.csv", made)
    assert data.load(tmp_path / "split.csv") == made


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ("path,patient\na.png,1\n", "no column 'label'"),
        ("path,label\na.png,maybe\nb.png,1\n", r"Line 2 of .* has the label 'maybe', which is none"),
        ("path,label\nnone.png,0\n", "has the path 'none.png', which is none"),
        ("path,label,split\na.png,0,later\n", "has the split 'later', which is none"),
        (
            "path,label,patient,split\na.png,0,P,train\nb.png,1,P,val\n",
            "Patient P is in the splits train and val",
        ),
        ("path,label\na.png,0\n", "holds NORMAL only"),
        ("path,label\n", "no JPEG, PNG or DICOM"),
    ],
)
def test_a_manifest_that_would_spoil_a_measurement_is_refused(
    rows: str, sentence: str, tmp_path: Path
) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    (tmp_path / "set.csv").write_text(rows)
    with pytest.raises(DataError, match=sentence):
        data.load(tmp_path / "set.csv")


def test_folders_that_are_no_classes_or_empty_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no folder or manifest"):
        data.load(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no JPEG, PNG or DICOM file"):
        data.load(tmp_path)
    picture(tmp_path / "NORMAL" / "a.png")
    with pytest.raises(DataError, match="holds NORMAL only"):
        data.load(tmp_path)
    picture(tmp_path / "kittens" / "a.png")
    with pytest.raises(DataError, match="kittens is not a class"):
        data.load(tmp_path)


def test_too_few_patients_for_two_splits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="lacks a class"):
        data.split(data.load(folder(tmp_path, patients=1)), 0.5, seed=0)


def test_a_corrupt_image_is_named_and_left_out_only_on_request(tmp_path: Path) -> None:
    examples = data.load(folder(tmp_path, patients=3))
    (tmp_path / "NORMAL" / "IM-0001-0000.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(DataError, match=r"IM-0001-0000\.png .* --skip-bad"):
        decode_all(examples, 32, workers=1)
    kept, images, bad = decode_all(examples, 32, workers=1, skip_bad=True)
    assert len(kept) == len(images) == len(examples) - 1
    assert images.shape[1:] == (1, 32, 32)
    assert all(example.path.name != "IM-0001-0000.png" for example in kept)
    assert [path.name for path in bad] == ["IM-0001-0000.png"]


def killed(path: Path) -> None:
    """End the process, as a lack of memory does."""
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_was_killed_is_told_in_a_sentence(tmp_path: Path) -> None:
    with (
        pytest.raises(DataError, match="was killed, perhaps for lack of memory"),
        in_processes(killed, [tmp_path] * 3, 2) as outcomes,
    ):
        list(outcomes)


def test_an_image_without_split_goes_where_its_patient_is(tmp_path: Path) -> None:
    files = sorted(folder(tmp_path / "set", patients=6).rglob("*.png"))
    rows = [
        f"{path},{path.parent.name},P{number // 2},{'val' * (number % 4 == 0)}"
        for number, path in enumerate(files)
    ]
    (tmp_path / "set.csv").write_text("\n".join(["path,label,patient,split", *rows]))
    made = data.split(data.load(tmp_path / "set.csv"), 0.3, 0)
    assert {e.split for e in made if int(e.patient[1:]) % 2 == 0} == {"val"}
    assert len({(e.patient, e.split) for e in made}) == len({e.patient for e in made}) == 12
