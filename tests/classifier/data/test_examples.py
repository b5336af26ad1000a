"""Labelled images: folders and manifests are read as people mean them, and no patient is on both sides."""

from __future__ import annotations

import csv
import os
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from classifier.data import examples as data
from classifier.data.groups import columns_of, group_of
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
        ("path,label\na.png,maybe\nb.png,1\n", r"Line 2 of .* has the label 'maybe', which is not known"),
        ("path,label\nnone.png,0\n", "has the path 'none.png', where there is no file"),
        ("path,label,split\na.png,0,later\n", "has the split 'later', which is not known"),
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


@pytest.mark.parametrize(
    ("delimiter", "encoding"),
    [(",", "utf-8"), (";", "utf-8"), ("\t", "utf-8"), (";", "utf-8-sig"), ("\t", "utf-16")],
)
def test_manifests_of_spreadsheets_are_read(delimiter: str, encoding: str, tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    rows = [("Path", "Label ", "PATIENT", "age", "Machine"), ("a.png", "normal", "Ä", "003Y", "A, B; C")]
    rows.append(("b.png", "Pneumonia", "B", "", ""))
    with (tmp_path / "set.csv").open("w", newline="", encoding=encoding) as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    first, second = data.load(tmp_path / "set.csv")
    assert (first.label, first.patient, second.label, second.patient) == (0, "Ä", 1, "B")
    assert first.columns == {"age": "003Y", "machine": "A, B; C"}
    assert first.age.completed() == (3, 3)
    assert second.columns == {}
    assert second.age.years is None
    data.write_manifest(tmp_path / "again.csv", [replace(first, weight=0.5), second])
    again = data.load(tmp_path / "again.csv")
    assert [(e.columns, e.weight) for e in again] == [(first.columns, 0.5), ({}, 1.0)]


@pytest.mark.parametrize("weight", ["0", "-1", "nan", "inf", "much"])
def test_a_weight_that_is_none_is_refused(weight: str, tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "set.csv").write_text(f"path,label,weight\na.png,0,{weight}\n")
    with pytest.raises(DataError, match=f"Line 2 of .* has the weight '{weight}'; write a number above 0"):
        data.load(tmp_path / "set.csv")


def test_tags_tell_age_sex_view_and_machine(tmp_path: Path) -> None:
    tags: dict[str, Any] = {"PatientAge": "004Y", "PatientSex": "F", "Manufacturer": "Acme"}
    (tmp_path / "NORMAL").mkdir()
    save(radiograph(PatientBirthDate="", ManufacturerModelName="One", **tags), tmp_path / "NORMAL" / "a.dcm")
    (tmp_path / "NORMAL" / "broken.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 40)
    picture(tmp_path / "PNEUMONIA" / "b.png")
    columns = {e.path.name: e.columns for e in data.load(tmp_path)}
    assert columns["a.dcm"] == {"age": "4.00", "sex": "F", "view": "PA", "machine": "ACME ONE"}
    assert columns["broken.dcm"] == columns["b.png"] == {}


def test_other_class_names_are_taken_by_option(tmp_path: Path) -> None:
    for name in ("Healthy", "sick"):
        picture(tmp_path / name / f"{name}.png")
    with pytest.raises(DataError, match=r"Healthy is not a class; .* add --classes Healthy,sick \("):
        data.load(tmp_path)
    found = data.load(tmp_path, data.class_names("healthy,SICK"))
    assert [(e.path.stem, e.label) for e in found] == [("Healthy", 0), ("sick", 1)]
    for text in ("healthy", "a,a", "a,", "a,b,c"):
        with pytest.raises(DataError, match="are not two names"):
            data.class_names(text)


def test_a_wrong_folder_suggests_the_right_one(tmp_path: Path) -> None:
    right = tmp_path / "a" / "b" / "set"
    for name in ("normal", "pneumonia"):
        picture(right / "train" / name / f"{name}.png")
    (tmp_path / "a" / "papers").mkdir()
    (tmp_path / "a" / "b" / "more").mkdir()
    for wrong in (tmp_path / "a" / "b", tmp_path / "a"):
        with pytest.raises(DataError, match=f"is not a class; name {right}, which holds both classes"):
            data.load(wrong)
    with pytest.raises(DataError, match=f"name {right / 'train'}, which holds both classes"):
        data.load(right / "train" / "normal")
    assert len(data.load(right)) == 2


def test_sets_are_joined_with_their_weights(tmp_path: Path) -> None:
    one, two = folder(tmp_path / "one", patients=1), folder(tmp_path / "two", patients=1)
    found = data.load_all([one, two], [1.0, 0.25])
    assert Counter(example.weight for example in found) == {1.0: 4, 0.25: 4}
    with pytest.raises(DataError, match="There are 1 weights for 2 sets"):
        data.load_all([one, two], [1.0])


def test_a_truncated_picture_is_called_so(tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 90), np.uint8))
    for name in ("a.jpeg", "a.png"):
        noise.save(tmp_path / name)
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        example = data.Example(tmp_path / name, 0, "P")
        with pytest.raises(DataError, match="The picture is truncated: its file ends before the image does"):
            decode_all([example], 32, workers=1)
        (tmp_path / name).write_bytes(whole + b"what a program appended")
        assert len(decode_all([example], 32, workers=1).images) == 1


def test_a_file_that_crashes_its_decoder_is_one_that_cannot_be_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2] / "faults" / "sabotage"))
    monkeypatch.setenv("DEADLY_IMAGES", "1")
    comments = ["", "DEADLY: crash", ""]
    paths = [
        save(radiograph(number=n, ImageComments=what), tmp_path / f"{n}.dcm")
        for n, what in enumerate(comments)
    ]
    examples = [data.Example(path, 0, path.stem) for path in paths]
    kept, images, bad = decode_all(examples, 32, workers=3, skip_bad=True)
    assert [example.patient for example in kept] == ["0", "2"]
    assert len(images) == 2
    assert "The decoder process crashed" in bad[paths[1]]


def test_groups_by_a_column() -> None:
    def example(**columns: str) -> data.Example:
        return data.Example(Path("a.png"), 0, "P", columns=columns)

    ages = {"0": "0 years", "1": "1 to 5 years", "005Y": "1 to 5 years", "6": "6 to 11 years"}
    ages |= {"18M": "1 to 5 years", "64": "40 to 64 years", "99": "65 years and older", "old": "not known"}
    assert {age: group_of(example(age=age), "age") for age in ages} == ages
    images = [example(sex="F", site="A"), example(sex="M", site="A"), example(site="A")]
    assert columns_of(images) == ["sex"]
    assert [group_of(image, "sex") for image in images] == ["F", "M", "not known"]
