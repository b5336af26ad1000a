"""Training over two processes takes the steps that one process takes on the same batches."""

from __future__ import annotations

import csv
import os
import socket
import subprocess
import sys
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.multiprocessing.spawn import start_processes

from classifier.model.network import Network
from classifier.training import run
from classifier.training.augment import Augment, Strength
from classifier.training.distributed import Group, rank, share_statistics
from classifier.training.optim import network
from classifier.training.options import Options
from classifier.training.recipes import DEFAULT, Recipe, changed
from classifier.training.train import train
from tests.helpers.datasets import folder

RECIPE = changed(DEFAULT, image_size=32, growth=1, epochs=2, batch_size=48, learning_rate=1e-3)
OPTIONS = Options(val_share=0.25, device="cpu", workers=1, precision="fp32")
# Both see the same batch and weights in the first epoch, which is one step; then only the order of sums
# differs, which Adam's first steps amplify: they are as long for a small gradient as for a large one.
SAME, TOLERANCE = 1e-4, 0.01


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("set"), patients=16)


def losses(run: Path) -> list[float]:
    with (run / "history.csv").open(newline="") as file:
        return [float(row[key]) for row in csv.DictReader(file) for key in ("train_loss", "val_loss")]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _train_without_dropout(number: int, size: int, port: int, images: Path, out: Path) -> None:
    """Be process `number` of `size`, with what torchrun sets."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}

    def without_dropout(recipe: Recipe) -> Network:
        model = network(recipe)
        model.classifier = nn.Sequential(nn.Identity(), *model.classifier[1:])
        return model

    run.network = without_dropout  # type: ignore[attr-defined]
    train(images, out, RECIPE, OPTIONS)


# Importing takes longer than what is tested
get_context("forkserver").set_forkserver_preload([train.__module__, network.__module__])


def run_processes(size: int, images: Path, out: Path) -> Path:
    arguments = (size, free_port(), images, out)
    start_processes(  # type: ignore[no-untyped-call]
        _train_without_dropout, arguments, nprocs=size, start_method="forkserver"
    )
    return out


def test_two_processes_follow_the_loss_curve_of_one(images: Path, tmp_path: Path) -> None:
    one = run_processes(1, images, tmp_path / "one")
    two = run_processes(2, images, tmp_path / "two")
    assert losses(two)[0] == pytest.approx(losses(one)[0], abs=SAME)
    assert losses(two) == pytest.approx(losses(one), abs=TOLERANCE)


def test_torchrun_starts_the_command_and_one_process_writes(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    launch = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    options = [
        "--image-size",
        "32",
        "--epochs",
        "1",
        "--batch-size",
        "16",
        "--val-share",
        "0.25",
        "--device",
        "cpu",
    ]
    done = subprocess.run(
        [
            sys.executable,
            *launch,
            "-m",
            "classifier",
            "train",
            str(images),
            "--out",
            str(out),
            "--device",
            "cpu",
            *options,
        ],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Epoch 1: loss") == 1
    assert {path.name for path in out.iterdir()} == {
        *("config.json", "curves.png", "environment.json", "history.csv", "last.pt", "model.safetensors"),
        *("index.html", "split.csv", "validation.csv"),
    }
    assert len(losses(out)) == 2


def test_parts_cover_a_batch_and_differ_by_one_at_most() -> None:
    for number in (0, 1, 7, 32, 33):
        parts = [Group(r, 3, torch.device("cpu")).part(number) for r in range(3)]
        assert [i for part in parts for i in range(number)[part]] == list(range(number))
        lengths = [part.stop - part.start for part in parts]
        assert max(lengths) - min(lengths) <= 1


def test_an_image_is_augmented_alike_in_whatever_process() -> None:
    images = torch.rand(8, 1, 40, 40)
    augment = Augment(32, Strength())
    whole = augment(images, torch.Generator().manual_seed(3), 8, slice(0, 8))
    half = augment(images[4:], torch.Generator().manual_seed(3), 8, slice(4, 8))
    torch.testing.assert_close(half, whole[4:])


def test_alone_nothing_is_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    alone, model = Group(0, 1, torch.device("cpu")), nn.BatchNorm2d(2)
    assert rank() == 0
    assert alone.wrapped(model) is model
    assert type(share_statistics(model, alone)) is nn.BatchNorm2d
    assert (alone.sum(2.5), alone.gather(torch.ones(1)).tolist()) == (2.5, [1.0])
