"""The command `classifier`: what it prints, its exit codes, one sentence for every mistake of its user."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from classifier.cli import main
from classifier.config import SHIPPED_MODEL
from classifier.model.checkpoint import load
from classifier.outcome import Decision
from classifier.scoring import predict
from tests.conftest import pixels, radiograph, save
from tests.helpers.datasets import folder
from tests.helpers.predictors import plain

pytestmark = pytest.mark.usefixtures("one_thread")


class Answer(NamedTuple):
    """What a run of the command left."""

    code: int
    out: str
    err: str


Classifier = Callable[..., Answer]


def process(*arguments: object) -> Answer:
    """Run the command in a process of its own."""
    command = [sys.executable, "-m", "classifier", *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, check=False, text=True)
    return Answer(run.returncode, run.stdout, run.stderr)


@pytest.fixture
def classifier(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Classifier:
    """The command in this process, which has loaded torch already and scores with it, on a wide terminal."""
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setattr(predict, "choose", plain)

    def run(*arguments: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["classifier", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        code = caught.value.code or 0
        assert isinstance(code, int)
        return Answer(code, *capsys.readouterr())

    return run


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A folder with two images that are scored, two that are not, and files that are none."""
    folder = tmp_path / "study"
    (folder / "deeper").mkdir(parents=True)
    save(radiograph(), folder / "1.2.840.113619.2.5")
    save(radiograph(view="LL", number=2), folder / "2.dcm")
    Image.fromarray(pixels(bits=8)).save(folder / "deeper/3.PNG")
    (folder / "deeper/4.jpg").write_bytes(b"\xff\xd8\xff broken")
    for other in (".hidden.dcm", "DICOMDIR", "notes.txt", "table.csv"):
        (folder / other).write_text("no image")
    return folder


def picture(path: Path) -> Path:
    Image.fromarray(pixels(bits=8)).save(path)
    return path


def sentence(answer: Answer) -> str:
    """Return the one sentence of a run that ended in a mistake of its user."""
    assert (answer.code, answer.out) == (2, "")
    (line,) = answer.err.splitlines()
    assert line.startswith("classifier: ")
    assert line.endswith(".")
    return line.removeprefix("classifier: ")


# --- help


def test_help_answers_without_torch() -> None:
    script = (
        "import sys; from classifier.cli import main; sys.argv = ['classifier', *sys.argv[1:]]\n"
        "try: main()\n"
        "finally: sys.exit(any(name in sys.modules for name in ('torch', 'monai', 'torchvision')))"
    )
    for command in ([], ["predict"], ["show"], ["train"]):
        run = subprocess.run(
            [sys.executable, "-c", script, *command, "--help"], capture_output=True, check=False
        )
        assert run.returncode == 0, run.stderr
        assert b"Usage: classifier" in run.stdout


def test_no_arguments_are_a_request_for_help(classifier: Classifier) -> None:
    answer = classifier()
    assert answer.code == 2
    assert all(command in answer.out for command in ("predict", "show", "pack"))


def test_a_wrong_option_is_explained(classifier: Classifier) -> None:
    for arguments in (["predict", "default"], ["show", "default", "--format", "xml"], ["guess"]):
        answer = classifier(*arguments)
        assert answer.code == 2
        assert "Usage: " in answer.err
        assert "Error" in answer.err


# --- predict


def test_files_of_all_kinds_are_scored_in_one_process(study: Path, tmp_path: Path) -> None:
    jpeg = picture(tmp_path / "chest.jpeg")
    answer = process("predict", "default", jpeg, study, "--format", "json", "--device", "cpu")
    assert (answer.code, answer.err) == (0, "")
    found = json.loads(answer.out)
    files = [
        jpeg,
        *(study / name for name in ("1.2.840.113619.2.5", "2.dcm", "deeper/3.PNG", "deeper/4.jpg")),
    ]
    assert [row["file"] for row in found] == [str(file) for file in files]
    keys = ["file", "probability", "decision", "reason", "detail", "view", "novelty", "age"]
    assert all(list(row) == keys for row in found)
    child = "TAGS_DISAGREE"  # noise, and tags that tell a child's age
    noise = "UNLIKE_TRAINING"  # which the pictures hold; it is scored all the same
    assert [row["reason"] for row in found] == [noise, child, "NOT_FRONTAL", noise, "UNREADABLE"]
    assert [row["view"] for row in found] == [None, "PA", None, None, None]
    for row in found:
        assert (row["probability"] is None) == (row["decision"] == "not_scored")
        assert bool(row["detail"]) == (row["decision"] in ("not_scored", "undetermined"))
        assert row["decision"] in set(Decision)


def test_csv_has_patient_age_novelty_and_decision(classifier: Classifier, tmp_path: Path) -> None:
    child = save(radiograph(PatientID="=1+1", PatientAge="003Y"), tmp_path / "child.dcm")
    unknown, public = picture(tmp_path / "chest.png"), picture(tmp_path / "person12_virus_3.png")
    files = (child, unknown, public)
    answer = classifier("predict", "default", *files, "--format", "csv", "--unlike-training", "decide")
    rows = list(csv.DictReader(StringIO(answer.out)))
    assert list(rows[0]) == [
        *("file", "patient", "age", "view", "probability", "novelty", "decision", "reason", "detail")
    ]
    assert [row["file"] for row in rows] == [str(file) for file in files]
    assert [row["patient"] for row in rows] == ["'=1+1", "", "person12"]  # the first is no formula
    assert [row["age"] for row in rows] == ["3.0", "", ""]
    same = json.loads(
        classifier("predict", "default", *files, "--format", "json", "--unlike-training", "decide").out
    )
    for row, other in zip(rows, same, strict=True):
        assert float(row["probability"]) == other["probability"]
        assert float(row["novelty"]) == other["novelty"]
        assert row["decision"] == other["decision"]
    refused = classifier(
        "predict", "default", save(radiograph(view="LL"), tmp_path / "l.dcm"), "--format", "csv"
    )
    (row,) = csv.DictReader(StringIO(refused.out))
    assert (row["probability"], row["decision"], row["reason"]) == ("", "not_scored", "NOT_FRONTAL")


def test_the_table_tells_the_same_on_wide_and_narrow_terminals(
    classifier: Classifier, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = json.loads(classifier("predict", "default", study, "--format", "json").out)
    wide = [line for line in classifier("predict", "default", study).out.splitlines() if str(study) in line]
    monkeypatch.setenv("COLUMNS", "80")
    narrow = classifier("predict", "default", study).out
    for line, row in zip(wide, rows, strict=True):
        assert row["file"] in line
        assert row["decision"].replace("_", " ") in line
        assert row["detail"] in line
        assert row["decision"].split("_")[0] in narrow
        assert row["probability"] is None or f" {row['probability']:.4f} " in line
        assert row["probability"] is None or f" {row['probability']:.4f} " in narrow
    assert "View is not frontal. " in wide[1]
    assert "Image cannot be read. " in wide[3]


def test_more_files_than_a_batch_are_all_scored_in_order(classifier: Classifier, tmp_path: Path) -> None:
    files = [tmp_path / f"{number:02}.dcm" for number in range(35)]
    for number, file in enumerate(files):
        file.write_bytes(b"broken")
        if number in (1, 17, 34):
            save(radiograph(number=number), file)
    answer = classifier("predict", "default", *files, "--format", "json")
    found = json.loads(answer.out)
    assert [row["file"] for row in found] == [str(file) for file in files]
    assert [n for n, row in enumerate(found) if row["probability"] is not None] == [1, 17, 34]


def test_the_rules_for_unknown_tags_are_options(classifier: Classifier, tmp_path: Path) -> None:
    silent: dict[str, Any] = dict.fromkeys(("ViewPosition", "ViewCodeSequence", "PatientOrientation"))
    file = save(radiograph(**silent), tmp_path / "chest.dcm")
    (refused,) = json.loads(classifier("predict", "default", file, "--format", "json").out)
    assert refused["reason"] == "NO_VIEW"
    lenient = classifier("predict", "default", file, "--unknown-view", "score", "--format", "json")
    assert json.loads(lenient.out)[0]["view"] == "unknown"


def test_file_names_are_printed_as_they_are(classifier: Classifier, tmp_path: Path) -> None:
    """Brackets are no markup, and a name in another encoding does not stop the run."""
    names = ["chest[pa].png", "[bold]2[", "]1.png", ":lungs:.png"]
    for name in names:
        picture(tmp_path / "p.png").rename(tmp_path / name)
    odd = picture(tmp_path / "p.png").rename(tmp_path / os.fsdecode(b"\x8b\xb9\x95\x94.png"))  # Shift JIS
    answer = classifier("predict", "default", *(tmp_path / name for name in names), odd)
    assert answer.code == 0
    assert all(f"{name} " in answer.out for name in names)
    answer.out.encode()


# --- mistakes


def test_a_mistake_ends_in_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    gone = tmp_path / "gone.dcm"
    assert sentence(process("predict", "default", gone)) == f"There is no file {gone}; check the path."


def test_a_missing_model_or_device_is_named(classifier: Classifier, study: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone[pa].dcm"
    assert sentence(classifier("predict", gone, study)).startswith(f"Cannot read the model {gone}: ")
    assert sentence(classifier("show", gone)).startswith(f"Cannot read the model {gone}: ")
    said = sentence(classifier("predict", "default", study, "--device", "gpu"))
    assert said.startswith("The device 'gpu' is not known; set device to ")
    said = sentence(classifier("predict", "default", study, "--device", "cuda:99"))
    assert said == 'This machine has no device \'cuda:99\'; set device to "cpu" or "auto".'


def test_a_damaged_model_is_named(classifier: Classifier, study: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(SHIPPED_MODEL.read_bytes()[:100_000])
    for arguments in (["predict", cut, study], ["show", cut]):
        said = sentence(classifier(*arguments))
        assert said == f"{cut} is damaged or not a safetensors file; copy it again."


def test_a_folder_without_images_is_named(classifier: Classifier, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    said = sentence(classifier("predict", "default", tmp_path))
    assert said == f"There is no DICOM, JPEG or PNG file in {tmp_path}; name another folder."


# --- show and pack


def test_show_prints_the_card(classifier: Classifier) -> None:
    card = load(SHIPPED_MODEL).card
    answer = classifier("show", "default")
    assert (answer.code, answer.err) == (0, "")
    for told in (card.sha256, card.preprocessing_text, f"{card.name} {card.version}", *card.limits):
        assert told in answer.out
    for metric in card.metrics:
        interval = f"95 % interval {metric.low} to {metric.high}"
        assert f"{metric.value}, {interval} ({metric.images} images" in answer.out
    printed = classifier("show", "default", "--format", "json")
    assert json.loads(printed.out) == json.loads(card.model_dump_json())


@pytest.fixture
def card_file(classifier: Classifier, tmp_path: Path) -> Path:
    """The card of the shipped model, as `show --format json` prints it."""
    path = tmp_path / "card.json"
    path.write_text(classifier("show", "default", "--format", "json").out)
    return path


def test_pack_makes_a_checkpoint_of_weights_and_a_card(
    classifier: Classifier, card_file: Path, tmp_path: Path
) -> None:
    bare, out = tmp_path / "bare.safetensors", tmp_path / "out [1].safetensors"
    save_file(load_file(SHIPPED_MODEL), bare)
    assert "has no model card" in sentence(classifier("show", bare))
    answer = classifier("pack", bare, "--card", card_file, "--out", out)
    model, card, *_ = load(out)
    assert answer == Answer(0, "", f"Wrote {out}, SHA-256 {card.sha256}\n")
    shipped, shipped_card, *_ = load(SHIPPED_MODEL)
    assert card.model_copy(update={"sha256": ""}) == shipped_card.model_copy(update={"sha256": ""})
    weights = zip(model.parameters(), shipped.parameters(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in weights)
    assert classifier("predict", out, picture(tmp_path / "chest.png")).code == 0


@pytest.mark.parametrize(("change", "said"), [
    ({"threshold": 1}, "Correct 'threshold' in the model card: Input should be less than 1."),
    ({"preprocessing": [{"name": "CLAHE"}]}, "The preprocessing step 'CLAHE' is not known to this version"),
    ({"architecture": "resnet50"}, "The architecture 'resnet50' is not known; use one of densenet121."),
])  # fmt: skip
def test_pack_refuses_a_card_that_could_not_be_served(
    change: dict[str, Any], said: str, classifier: Classifier, card_file: Path, tmp_path: Path
) -> None:
    card_file.write_text(json.dumps(json.loads(card_file.read_text()) | change))
    out = tmp_path / "out.safetensors"
    assert sentence(classifier("pack", SHIPPED_MODEL, "--card", card_file, "--out", out)).startswith(said)
    assert not out.exists()


def test_pack_refuses_files_that_are_none(classifier: Classifier, card_file: Path, tmp_path: Path) -> None:
    out, gone = tmp_path / "out.safetensors", tmp_path / "gone"
    assert "Cannot read the model" in sentence(classifier("pack", gone, "--card", card_file, "--out", out))
    said = sentence(classifier("pack", SHIPPED_MODEL, "--card", gone, "--out", out))
    assert said == f"Cannot use {gone}: No such file or directory; check the path."
    card_file.write_bytes(b"\xff\xfe{")
    said = sentence(classifier("pack", SHIPPED_MODEL, "--card", card_file, "--out", out))
    assert said == f"{card_file} is not UTF-8 text; save it as UTF-8."
    card_file.write_text("no JSON")
    assert "not JSON" in sentence(classifier("pack", SHIPPED_MODEL, "--card", card_file, "--out", out))
    assert not out.exists()


# --- export, ages and doubts


def test_export_writes_a_bundle_and_says_where(classifier: Classifier, tmp_path: Path) -> None:
    answer = classifier("export", "default", "--format", "monai-bundle", "--out", tmp_path / "bundle")
    assert answer == Answer(0, "", f"Wrote {tmp_path / 'bundle'}\n")
    metadata = json.loads((tmp_path / "bundle" / "configs" / "metadata.json").read_text())
    assert load(SHIPPED_MODEL).card.sha256 in metadata["changelog"]["0.1.0"]
    said = sentence(classifier("export", "default", "--format", "monai-bundle", "--out", tmp_path / "bundle"))
    assert said.endswith("is not empty; name another folder.")


@pytest.mark.parametrize("ages", ["5", "1-", "6-5", "one-five", "1 - 5"])
def test_ages_that_are_none_are_refused(ages: str, classifier: Classifier, tmp_path: Path) -> None:
    said = sentence(classifier("train", tmp_path, "--out", tmp_path / "run", "--ages", ages))
    assert said == f"The ages {ages!r} are not valid; write youngest and oldest, such as 1-5."


@pytest.mark.parametrize("option", ["--name", "--version", "--population", "--licence"])
def test_a_card_that_would_say_nothing_is_refused_before_training(
    option: str, classifier: Classifier, tmp_path: Path
) -> None:
    said = sentence(classifier("train", tmp_path, "--out", tmp_path / "run", option, " "))
    assert said == f"{option} is empty; give a text, or leave it out."


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("classifier = 3", "classifier is not a table; write its settings below its heading."),
        ("[classifier]\ntrain = 5", "train is not a table; write its settings below its heading."),
        ("[classifier.train]\nseed = 99999999999999999999", "Correct seed: "),
        ("[classifier.train]\nseed = -1", "Correct seed: "),
        ("[classifier.train]\nepoch = 3", "Correct epoch: "),
        ("[classifier.train", "is no valid TOML"),
    ],
)
def test_settings_that_are_none_are_refused(
    content: str, said: str, classifier: Classifier, tmp_path: Path
) -> None:
    config = tmp_path / "config.toml"
    config.write_text(content)
    assert said in sentence(classifier("train", tmp_path, "--out", tmp_path / "run", "--config", config))


def test_a_folder_for_results_that_is_a_file_is_named_before_anything_is_scored(
    classifier: Classifier, tmp_path: Path
) -> None:
    images = folder(tmp_path / "set", patients=1)
    taken = tmp_path / "taken"
    taken.write_text("mine")
    for command in (("explore", images), ("evaluate", "default", images), ("train", images)):
        answer = classifier(*command, "--out", taken)
        assert sentence(answer) == f"Cannot use {taken}: File exists; check the path."
        assert not answer.out


def test_an_adult_is_undetermined_unless_told_otherwise(classifier: Classifier, tmp_path: Path) -> None:
    ages = load(SHIPPED_MODEL).card.ages
    assert ages is not None
    adult = save(radiograph(PatientAge="062Y", PatientBirthDate=""), tmp_path / "adult.dcm")
    careful, decided = (
        json.loads(classifier("predict", "default", adult, "--format", "json", *options).out)[0]
        for options in ((), ("--unlike-training", "decide"))
    )
    assert careful["decision"] == Decision.UNDETERMINED
    assert decided["decision"] in (Decision.POSITIVE, Decision.NEGATIVE)
    assert careful["probability"] == decided["probability"]
    assert careful["age"] == decided["age"] == 62


def test_a_picture_tells_no_age_and_is_decided_where_asked_for(
    classifier: Classifier, tmp_path: Path
) -> None:
    file = picture(tmp_path / "chest.png")
    careful = classifier("predict", "default", file, "--format", "json")
    decided = classifier("predict", "default", file, "--format", "json", "--unknown-age", "decide")
    rows = [json.loads(answer.out)[0] for answer in (careful, decided)]
    assert rows[0]["decision"] == Decision.UNDETERMINED
    assert rows[0]["reason"] in ("UNKNOWN_AGE", "UNLIKE_TRAINING")
    assert rows[1]["reason"] != "UNKNOWN_AGE"
    if rows[0]["reason"] == "UNKNOWN_AGE":
        assert "--unknown-age decide" in careful.err
    assert "--unknown-age" not in decided.err
