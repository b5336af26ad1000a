"""Training, on a set so small and easy that it takes seconds: what it leaves behind, and how it ends."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import save_file
from torchvision.transforms import v2

from classifier.cli import main
from classifier.config import SHIPPED_MODEL
from classifier.data.examples import load as load_data
from classifier.data.examples import write_manifest
from classifier.errors import DataError, TrainingError
from classifier.measuring.evaluate import evaluate
from classifier.measuring.explore import explore
from classifier.model.checkpoint import load, save
from classifier.model.transforms import Resize, tail
from classifier.reasons import Reason
from classifier.scoring.predict import Predictor
from classifier.training.card import About, OperatingTarget
from classifier.training.decoded_set import DecodedSet
from classifier.training.distributed import Group
from classifier.training.optim import network, optimizer, schedule
from classifier.training.options import Epoch, Options, Watcher
from classifier.training.recipes import DEFAULT, PUBLISHED, changed
from classifier.training.run import Run
from classifier.training.run_folder import Origin, read_state, write_state
from classifier.training.train import train
from tests.helpers.commands import in_this_process
from tests.helpers.datasets import folder, picture

RECIPE = changed(DEFAULT, image_size=32, epochs=2, batch_size=16, learning_rate=2e-3)
ABOUT = About(description="Made-up pictures.", ages=(1, 5))
OPTIONS = Options(
    val_share=0.25, device="cpu", workers=1, wanted=OperatingTarget(unlike_share=0.1), about=ABOUT
)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("set"), patients=16)


@pytest.fixture(scope="module")
def run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    out = tmp_path_factory.mktemp("runs") / "one"
    train(images, out, RECIPE, OPTIONS)
    return out


def history(run: Path) -> list[dict[str, str]]:
    with (run / "history.csv").open(newline="") as file:
        timing = ("images_per_second", "seconds")
        return [{k: v for k, v in row.items() if k not in timing} for row in csv.DictReader(file)]


def test_a_run_leaves_a_model_with_its_card_its_split_and_its_history(run: Path, images: Path) -> None:
    _, card, novelty, _ = load(run / "model.safetensors")
    assert card.data.startswith("Made-up pictures. 48 training images")
    assert "16 validation images of 8 patients" in card.threshold_source
    names = {"AUROC", "sensitivity", "specificity", "accuracy", "expected calibration error"}
    assert {metric.name for metric in card.metrics} == names
    for metric in card.metrics:
        assert (metric.images, metric.patients) == (16, 8)
        assert metric.low is not None
        assert metric.high is not None
        assert metric.low <= metric.value <= metric.high or metric.name == "expected calibration error"
    assert novelty is not None
    assert card.ages == (1, 5)
    assert len(load_data(run / "split.csv")) == 64
    assert [row["epoch"] for row in history(run)] == ["1", "2"]
    assert json.loads((run / "config.json").read_text())["recipe"]["image_size"] == 32
    assert json.loads((run / "environment.json").read_text())["torch"] == torch.__version__
    (answer,) = Predictor.load(run / "model.safetensors", "cpu").predict([next(images.rglob("*.png"))])
    assert answer.probability is not None


def test_the_same_seed_gives_the_same_history_and_another_one_does_not(
    run: Path, images: Path, tmp_path: Path
) -> None:
    train(images, tmp_path / "again", RECIPE, OPTIONS)
    assert history(tmp_path / "again") == history(run)
    train(images, tmp_path / "other", changed(RECIPE, epochs=1), Options(**{**vars(OPTIONS), "seed": 1}))
    assert history(tmp_path / "other")[0] != history(run)[0]


def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(run: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "classifier", "train", str(images), "--out", str(out), "--epochs", "2"]
    command += ["--image-size", "32", "--batch-size", "16", "--learning-rate", "2e-3", "--val-share", "0.25"]
    command += ["--device", "cpu", "--workers", "1", "--description", "Made-up pictures."]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not (out / "last.pt").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = len(history(out)) if (out / "history.csv").exists() else 0
    assert (out / "last.pt").exists()
    alone = [sys.executable, "-m", "classifier", "train", "--resume", str(out)]
    resumed = subprocess.run(alone, capture_output=True, text=True, check=False)
    assert resumed.returncode == 0, resumed.stderr
    assert done <= 2
    assert history(out) == history(run)
    assert (out / "curves.png").is_file()
    card = load(out / "model.safetensors").card
    assert card.name == f"densenet121-{images.name}"
    assert f"Model {card.name} {card.version}: {out / 'model.safetensors'}" in resumed.stderr
    assert "may have a sensitivity of" in resumed.stderr
    assert "The ages of the patients are not known" in resumed.stderr
    assert resumed.stderr.rstrip().endswith(f"Page: {out / 'index.html'}")
    assert card.sha256 in (out / "index.html").read_text()
    told = subprocess.run(
        [*alone, "--epochs", "5", "--seed", "1"], capture_output=True, text=True, check=False
    )
    assert "other data or settings: epochs was 2, now 5; seed was 0, now 1. Leave" in told.stderr


def test_a_second_run_does_not_overwrite_the_first(run: Path, images: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="--resume"):
        train(images, run, RECIPE, OPTIONS)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    with pytest.raises(TrainingError, match="other data or settings"):
        train(images, run, changed(RECIPE, epochs=3), Options(**{**vars(OPTIONS), "resume": True}))
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    with pytest.raises(TrainingError, match="no run to resume"):
        train(images, tmp_path / "new", RECIPE, Options(**{**vars(OPTIONS), "resume": True}))


def test_images_that_differ_from_those_of_a_run_are_named(run: Path, images: Path, tmp_path: Path) -> None:
    examples = load_data(run / "split.csv")
    changed_set = [replace(examples[0], label=1 - examples[0].label), *examples[2:]]
    changed_set.append(replace(examples[1], path=picture(tmp_path / "new.png")))
    options = replace(OPTIONS, resume=True)
    with pytest.raises(TrainingError) as caught:
        train(changed_set, run, RECIPE, options)
    said = str(caught.value)
    assert "1 images are new (new.png)" in said
    assert f"1 images are gone ({examples[1].path.name})" in said
    assert f"1 images have another label ({examples[0].path.name})" in said
    heavier = [replace(examples[0], weight=2.0), *examples[1:]]
    with pytest.raises(TrainingError, match=r"settings: the weights of the images\. Leave"):
        train(heavier, run, RECIPE, options)


def flipped(content: bytes) -> bytes:
    """Return the content with one bit of some weight changed."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def a_list(_: bytes) -> bytes:
    buffer = BytesIO()
    torch.save([1, 2], buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "damage",
    [lambda content: content[:1000], lambda _: b"", lambda _: b"hello world", flipped, a_list],
    ids=["short", "empty", "text", "flipped", "list"],
)
def test_a_damaged_state_is_told(damage: Callable[[bytes], bytes], run: Path, tmp_path: Path) -> None:
    (tmp_path / "last.pt").write_bytes(damage((run / "last.pt").read_bytes()))
    with pytest.raises(TrainingError, match="is damaged; start again"):
        read_state(tmp_path, Origin(RECIPE, OPTIONS, load_data(run / "split.csv")))


def test_a_run_that_ended_before_its_history_was_written_gets_it_when_resumed(
    run: Path, images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(run, out)
    (out / "history.csv").unlink()
    drawn: list[int] = []
    watcher = Watcher(finished=lambda history, _: drawn.append(len(history)))
    train(images, out, RECIPE, Options(**{**vars(OPTIONS), "resume": True}), watcher)
    assert history(out) == history(run)
    assert drawn == [2]


def test_all_bad_images_are_named_before_training_or_left_out_and_listed(tmp_path: Path) -> None:
    root = folder(tmp_path / "set", patients=8)
    bad = {root / "NORMAL" / f"IM-{number:04}-0000.png" for number in range(8)}  # of both splits
    for path in bad:
        path.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"and 5 more cannot be decoded; .* --skip-bad"):
        train(root, tmp_path / "refused", RECIPE, OPTIONS)
    assert not list((tmp_path / "refused").iterdir())
    told: list[int] = []
    watcher = Watcher(split=lambda examples, skipped: told.extend((len(examples), len(skipped))))
    options = Options(**{**vars(OPTIONS), "skip_bad": True})
    train(root, tmp_path / "run", changed(RECIPE, epochs=1), options, watcher)
    assert told == [24, 8]
    with (tmp_path / "run" / "skipped.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {Path(row["path"]) for row in rows} == bad
    assert all(row["reason"] for row in rows)


@pytest.mark.parametrize("batch_size", [2, 47])
def test_every_batch_has_enough_images(batch_size: int, images: Path, tmp_path: Path) -> None:
    """47 of 48 images would leave one for the last batch, which 32 pixels cannot normalise."""
    recipe = changed(RECIPE, epochs=1, batch_size=batch_size)
    assert train(images, tmp_path / "run", recipe, OPTIONS).is_file()


def test_a_set_of_one_image_for_each_process_is_refused(images: Path, tmp_path: Path) -> None:
    decoded = DecodedSet.decoded(images, RECIPE, OPTIONS, Watcher())
    group = Group(0, 32, torch.device("cpu"))
    with pytest.raises(TrainingError, match="A batch of 16 images is too small"):
        Run(RECIPE, OPTIONS, tmp_path, decoded, group)


def test_an_interrupted_run_says_in_its_card_that_it_is_not_finished(images: Path, tmp_path: Path) -> None:
    def stop(history: object, best: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(images, tmp_path / "run", RECIPE, OPTIONS, Watcher(finished=stop))
    _, card, novelty, _ = load(tmp_path / "run" / "model.safetensors")
    assert novelty is None
    assert any("Training was not finished" in limit for limit in card.limits)
    train(images, tmp_path / "run", RECIPE, Options(**{**vars(OPTIONS), "resume": True}))
    _, card, novelty, _ = load(tmp_path / "run" / "model.safetensors")
    assert novelty is not None
    assert not any("Training was not finished" in limit for limit in card.limits)


@pytest.mark.parametrize(
    ("precision", "able", "is_half"),
    [
        ("auto", {"avx512_bf16": True}, True),
        ("auto", {"amx_bf16": True}, True),
        ("auto", {"avx2": True, "avx512_f": True, "avx512_bf16": False}, False),
        ("bf16", {}, True),
        ("fp32", {"avx512_bf16": True}, False),
    ],
)
def test_a_processor_that_would_emulate_bfloat16_trains_in_float32(
    precision: Literal["auto", "bf16", "fp32"],
    able: dict[str, bool],
    is_half: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    assert Options(precision=precision).is_half(torch.device("cpu")) is is_half


def test_a_loss_that_is_not_finite_ends_the_run_with_advice(images: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="lower --learning-rate"):
        train(
            images,
            tmp_path / "run",
            changed(RECIPE, learning_rate=1e30, schedule="plateau", epochs=3),
            OPTIONS,
        )


def test_a_full_disk_leaves_the_earlier_state_whole(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "full"
    recipe = changed(RECIPE, epochs=1, schedule="plateau")
    train(images, out, recipe, OPTIONS)
    before = (out / "last.pt").read_bytes()

    def full(state: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    origin = Origin(recipe, OPTIONS, load_data(out / "split.csv"))
    with pytest.raises(TrainingError, match="make space, then --resume"):
        write_state(out, origin, [Epoch(1, 0, 0, 0, 0, 0, 0, 0)], {})
    assert (out / "last.pt").read_bytes() == before
    assert not list(out.glob(".*.tmp"))


def test_imagenet_weights_that_cannot_be_had_say_which_file_goes_where(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    with pytest.raises(TrainingError, match=r"put densenet121-\w+\.pth from pytorch.org into .*hub"):
        train(images, tmp_path / "run", changed(PUBLISHED, image_size=32, epochs=1), OPTIONS)


def test_the_published_recipe_trains_the_last_two_blocks_and_the_head_only(
    run: Path, images: Path, tmp_path: Path
) -> None:
    weights = run / "model.safetensors"
    train(
        images, tmp_path / "run", changed(PUBLISHED, image_size=32, epochs=1, weights=str(weights)), OPTIONS
    )
    before, after = (
        load(weights)[0].state_dict(),
        load(tmp_path / "run" / "model.safetensors")[0].state_dict(),
    )
    assert ", weights=model.safetensors, " in load(tmp_path / "run" / "model.safetensors").card.recipe
    moved = {name.split(".")[1] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"denseblock3", "transition3", "denseblock4", "norm5", "1"}


def test_the_published_recipe_is_the_published_one() -> None:
    model = network(changed(PUBLISHED, weights="none", frozen=False))
    assert isinstance(optimizer(PUBLISHED, model), torch.optim.Adam)
    assert isinstance(
        schedule(PUBLISHED, optimizer(PUBLISHED, model), 9), torch.optim.lr_scheduler.ReduceLROnPlateau
    )
    assert (PUBLISHED.learning_rate, PUBLISHED.patience, PUBLISHED.augment) == (1e-4, 5, None)
    assert (PUBLISHED.smoothing, PUBLISHED.mixup, PUBLISHED.average, PUBLISHED.balanced) == (0, 0, 0, False)
    assert [type(layer).__name__ for layer in model.classifier] == ["Dropout", "Linear"]
    assert model.classifier[0].p == 0.3
    image = torch.rand(1, 300, 260, generator=torch.Generator().manual_seed(0))
    prepared = tail(PUBLISHED.preprocessing)(image)
    grey = Resize(224)(image).repeat(3, 1, 1)
    expected = v2.functional.normalize(grey, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    torch.testing.assert_close(prepared, expected)


def test_the_side_grows_to_the_full_one_and_stays_there() -> None:
    recipe = changed(DEFAULT, image_size=160, epochs=10, growth=0.5)
    sides = [recipe.size_at(epoch) for epoch in range(1, 11)]
    assert sides == sorted(sides)
    assert (sides[0], sides[6:]) == (80, [160] * 4)
    assert {changed(recipe, growth=1).size_at(epoch) for epoch in range(1, 11)} == {160}
    assert changed(recipe, image_size=100).size_at(10) == 100


def test_weights_of_another_network_are_refused(images: Path, tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    recipe = changed(RECIPE, weights=str(tmp_path / "other.safetensors"))
    with pytest.raises(TrainingError, match="do not fit densenet121; take another file"):
        train(images, tmp_path / "run", recipe, OPTIONS)


def test_an_evaluation_writes_exactly_the_promised_keys_and_one_page(
    run: Path, images: Path, tmp_path: Path
) -> None:
    predictor = Predictor.load(run / "model.safetensors", "cpu", None)
    found = evaluate(predictor, images, tmp_path / "result")
    content = json.loads((tmp_path / "result" / "metrics.json").read_text())
    assert list(content) == [
        *("n", "n_positive", "threshold", "accuracy", "balanced_accuracy", "sensitivity", "specificity"),
        *("precision", "npv", "f1", "auroc", "auroc_ci95", "average_precision", "brier", "ece"),
        *(
            "confusion_matrix",
            "model",
            "as_node",
            "subgroups",
            "baselines",
            "fragility",
            "beside",
            "per_file",
        ),
    ]
    card = predictor.card
    assert content["model"] == {"name": card.name, "version": card.version, "sha256": card.sha256}
    assert content["n"] == len(content["per_file"]) == 64
    assert set(content["per_file"][0]) == {"path", "label", "probability"}
    (tn, fp), (fn, tp) = content["confusion_matrix"]
    assert content["accuracy"] == pytest.approx((tn + tp) / (tn + fp + fn + tp))
    assert found.measures.auroc_ci95[0] <= found.measures.auroc <= found.measures.auroc_ci95[1]
    html = (tmp_path / "result" / "index.html").read_text()
    assert html.count("data:image/png;base64,") == 6
    assert "Unlike the training images" in html
    assert "://" not in html
    assert "pneumonia" in (tmp_path / "result" / "report.txt").read_text()
    with (tmp_path / "result" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["probability"]) for row in rows] == found.probability.tolist()
    assert {row["reason"] for row in rows} <= {"UNKNOWN_AGE", "UNLIKE_TRAINING"}  # pictures tell no age
    assert content["as_node"]["undetermined"] == sum(row["decision"] == "undetermined" for row in rows) == 64


def test_two_models_are_compared_by_the_command_and_ages_come_from_a_manifest(
    run: Path, images: Path, tmp_path: Path
) -> None:
    listed = [replace(e, columns={"age": "3" if at % 4 else "30"}) for at, e in enumerate(load_data(images))]
    manifest, out = tmp_path / "set.csv", tmp_path / "result"
    write_manifest(manifest, listed)
    call = ["classifier", "evaluate", str(run / "model.safetensors"), str(manifest)]
    options = ["--out", str(out), "--beside", "default", "--device", "cpu"]
    done = in_this_process(main, *call, *options)
    assert done.returncode == 0, done.stderr
    shipped = load(SHIPPED_MODEL).card
    assert f"Beside {shipped.name} {shipped.version}: AUROC " in done.stdout
    assert "Without a lung, by ring alone: AUROC " in done.stdout
    assert " OTHER_AGE" in done.stdout
    content = json.loads((out / "metrics.json").read_text())
    assert 0 < content["as_node"]["decided"] <= 48
    assert 0 < content["as_node"]["reasons"]["OTHER_AGE"] <= 16  # some are unlike the training images besides
    assert set(content["subgroups"]["age"]) == {"1 to 5 years", "18 to 39 years"}
    assert content["subgroups"]["age"]["18 to 39 years"]["decided_as_node"] == 0
    html = (out / "index.html").read_text()
    for heading in ("As the node would answer", "By age", "Without a lung", f"Beside {shipped.name}"):
        assert heading in html


def test_an_evaluation_needs_both_classes_after_bad_images_are_left_out(run: Path, tmp_path: Path) -> None:
    root = folder(tmp_path / "set", patients=3)
    predictor = Predictor.load(run / "model.safetensors", "cpu", None)
    sick = sorted((root / "PNEUMONIA").iterdir())
    for path in sick:
        path.write_bytes(b"no picture")
    with pytest.raises(DataError, match=rf"{sick[0].name} \(.*and 3 more cannot be decoded"):
        evaluate(predictor, root, tmp_path / "result")
    with pytest.raises(DataError, match=r"Without the 6 that have no score, .* lacks a class"):
        evaluate(predictor, root, tmp_path / "result", skip_bad=True)


def test_pages_bear_names_that_look_like_formulas(run: Path, tmp_path: Path) -> None:
    root = folder(tmp_path / "set", patients=2)
    for path in [*root.rglob("*.png")]:
        path.rename(path.with_name(f"a$^$b<i>{path.name}"))
    evaluate(Predictor.load(run / "model.safetensors", "cpu", None), root, tmp_path / "result")
    explore(root, tmp_path / "look")
    for page in ("result", "look"):
        assert "a$^$b<i>" not in (tmp_path / page / "index.html").read_text()  # only escaped


def test_an_evaluation_tells_how_many_are_near_the_threshold(run: Path, images: Path, tmp_path: Path) -> None:
    model, card, novelty, _ = load(run / "model.safetensors")
    wide = card.model_copy(update={"band": 0.2})
    save(tmp_path / "wide.safetensors", model.state_dict(), wide, novelty)
    predictor = Predictor.load(tmp_path / "wide.safetensors", "cpu", None, cautious=False)
    found = evaluate(predictor, images, tmp_path / "result")
    number = sum(p.reason == Reason.NEAR_THRESHOLD for p in predictor.predict(sorted(images.rglob("*.png"))))
    page = (tmp_path / "result" / "index.html").read_text()
    assert f"Nearer than 0.2 to the threshold</th><td>{number}</td>" in page
    assert 0 < number <= found.measures.n


def test_exploring_finds_what_would_spoil_a_measurement(tmp_path: Path) -> None:
    root = folder(tmp_path / "set", patients=4)
    copy = root / "PNEUMONIA" / "person0_virus_9.png"
    copy.write_bytes((root / "PNEUMONIA" / "person0_virus_0.png").read_bytes())
    picture(root / "PNEUMONIA" / "IM-0001-0009.png", 140, 99)
    (root / "NORMAL" / "IM-0009-0000.png").write_bytes(b"no picture")
    findings = explore(root, tmp_path / "look")
    assert findings.classes == {"NORMAL": 9, "PNEUMONIA": 10}
    assert [Path(name).name for name in findings.unreadable] == ["IM-0009-0000.png"]
    assert [len(group) for group in findings.exact_duplicates] == [2]
    assert findings.patients_in_two_classes == ["IM-0001"]
    assert json.loads((tmp_path / "look" / "findings.json").read_text())["images"] == 19
    assert (tmp_path / "look" / "index.html").read_text().count("data:image/png;base64,") == 5
