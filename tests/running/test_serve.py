"""How `pacs-node serve` starts, refuses to start, and ends; and what the command line says of mistakes."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup
from typer.testing import CliRunner

from classifier import cli as classifier_cli
from db.errors import DatabaseError
from db.session import Database, sqlite
from db.status import heartbeats
from pacs_node import cli as node_cli
from pacs_node.config import load
from pacs_node.demo.peers import NodeProcess, free_port
from pacs_node.network import scu
from pacs_node.network.peer import Peer
from pacs_node.running.supervisor import cuda_devices
from tests.conftest import radiograph, save
from tests.helpers.commands import command, configure, wait_for


def refused(folder: Path, *arguments: str) -> str:
    """Return the one sentence with which `serve` refuses to start."""
    done = command("serve", "--config", folder / "config.toml", *arguments, PACS_NODE_LOG__LEVEL="ERROR")
    assert done.returncode == 2, done.stderr
    said = done.stderr.strip()
    assert "\n" not in said
    assert said.startswith("pacs-node: ")
    return said


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a config.toml that works."""
    configure(tmp_path, f"sqlite:///{tmp_path / 'results.sqlite'}", free_port())
    return tmp_path


def change(folder: Path, old: str, new: str) -> None:
    file = folder / "config.toml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_an_unknown_key_is_named_with_the_one_that_was_meant(folder: Path) -> None:
    change(folder, "quiet_seconds", "quiet_second")
    assert "unknown key study.quiet_second (did you mean quiet_seconds?)" in refused(folder)


def test_an_unknown_role_is_named(folder: Path) -> None:
    assert "receive, score, deliver" in refused(folder, "--roles", "recieve")


def test_a_port_in_use_is_named(folder: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        where = {"PACS_NODE_NODE__PORT": str(port), "PACS_NODE_LOG__LEVEL": "ERROR"}
        done = command("serve", "--config", folder / "config.toml", **where)
    assert done.returncode == 2
    assert f"Port {port} on 127.0.0.1 is in use" in done.stderr


def test_a_database_that_cannot_be_reached_is_named_without_its_password(folder: Path) -> None:
    url = f"postgresql://someone:secret@127.0.0.1:{free_port()}/results"
    change(folder, f"sqlite:///{folder / 'results.sqlite'}", url)
    said = refused(folder)
    assert "does not work" in said
    assert "secret" not in said


def test_a_database_of_a_newer_version_is_left_alone(folder: Path) -> None:
    with sqlite.connect(folder / "results.sqlite") as database:
        database.execute("CREATE TABLE alembic_version (version_num VARCHAR(32))")
        database.execute("INSERT INTO alembic_version VALUES ('9999')")
    database.close()
    assert "newer version; update the program" in refused(folder)


def test_a_spool_that_cannot_be_written_is_named(folder: Path) -> None:
    (folder / "file").write_text("in the way")
    change(folder, "[node]", f'[spool]\npath = "{folder / "file" / "spool"}"\n[node]')
    assert "Cannot write the spool" in refused(folder)


def test_a_state_folder_is_made_and_one_that_cannot_be_is_named(folder: Path) -> None:
    made, database = folder / "a" / "b", f"sqlite:///{folder / 'results.sqlite'}"
    change(folder, database, "sqlite:///results.sqlite")
    change(folder, "[node]", f'[node]\nstate_folder = "{made}"')
    with NodeProcess(folder / "config.toml", folder / "log") as node:
        node.wait_until_ready()
    assert (made / "results.sqlite").is_file()
    assert not (folder / "results.sqlite").exists()
    (folder / "file").write_text("in the way")
    change(folder, str(made), str(folder / "file" / "state"))
    assert f"The state folder {folder}/file/state cannot be made: Not a directory" in refused(folder)


def test_a_model_that_is_missing_or_damaged_is_named(folder: Path) -> None:
    model = folder / "model.safetensors"
    change(folder, "[node]", f'[classifier]\nmodel = "{model}"\n[node]')
    assert f"Cannot read the model {model}" in refused(folder, "--roles", "score")
    model.write_bytes(b"not a model")
    assert "damaged" in refused(folder, "--roles", "score")


def test_an_association_that_is_open_at_the_end_may_finish_its_object(folder: Path, tmp_path: Path) -> None:
    files = [save(radiograph("CR", study=str(n)), tmp_path / f"{n}.dcm") for n in range(200)]
    with NodeProcess(folder / "config.toml", folder / "node.log", "receive") as node:
        node.wait_until_ready()
        port = int((folder / "config.toml").read_text().split("port = ")[1].split()[0])
        answers = []
        for answer in scu.send(files, Peer("PACS_NODE", "127.0.0.1", port), "TEST"):
            answers.append(answer)
            if len(answers) == 5:
                os.kill(node.pid, signal.SIGTERM)
    assert node.exit_code == 0
    stored = sum(answer.is_stored for answer in answers)
    assert stored >= 5
    with sqlite.connect(folder / "results.sqlite") as database:
        (rows,) = database.execute("SELECT COUNT(*) FROM instance").fetchone()
    database.close()
    assert rows == len(list((folder / "spool" / "objects").rglob("*.dcm")))
    assert rows - stored in (0, 1)  # of the last one the answer may have been cut off


SIGNALLED = """
import os, signal
from pacs_node.running.supervisor import stop_on_signals

with stop_on_signals() as stopped:
    with stopped._cond:  # as in the middle of `wait`
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
    print(stopped.wait(120))
"""


def test_a_signal_ends_the_wait_whatever_the_process_is_at() -> None:
    done = subprocess.run([sys.executable, "-c", SIGNALLED], capture_output=True, text=True, check=False)
    assert done.stdout == "True\n", done.stderr


def test_no_process_outlives_a_supervisor_that_was_killed(folder: Path) -> None:
    node = NodeProcess(folder / "config.toml", folder / "node.log", "receive,deliver")
    with node:
        node.wait_until_ready()
        children = Path(f"/proc/{node.pid}/task/{node.pid}/children").read_text().split()
        assert len(children) == 2
        os.kill(node.pid, signal.SIGKILL)
        wait_for(
            lambda: not any(Path(f"/proc/{child}").exists() for child in children), "the processes to end"
        )


def test_status_says_when_no_process_is_at_work(folder: Path) -> None:
    with NodeProcess(folder / "config.toml", folder / "node.log", "receive,deliver") as node:
        node.wait_until_ready()
        wait_for(lambda: "No receive process is running" not in status(folder), "the first heartbeat")
        assert "No score process is running" in status(folder)
    assert "No receive process is running" in status(folder)


def test_status_says_that_a_process_starts(folder: Path) -> None:
    database = Database(f"sqlite:///{folder / 'results.sqlite'}")

    def roles() -> list[str]:
        with database.read() as session:
            return [beat.role for beat in heartbeats(session)]

    with NodeProcess(folder / "config.toml", folder / "node.log") as node:
        wait_for((folder / "results.sqlite").exists, "the database")
        wait_for(lambda: _has(roles, "score (starting)"), "the scoring process to start")
        done = command("status", "--config", folder / "config.toml", COLUMNS="120")
        assert "No score process is running" not in done.stdout
        assert "Process score (starting)" in done.stdout
        node.wait_until_ready()
        wait_for(lambda: "score" in roles(), "the first heartbeat")
        assert not any("starting" in role for role in roles())
    assert roles() == []
    database.close()


def _has(roles: Callable[[], list[str]], role: str) -> bool:
    try:
        return role in roles()
    except DatabaseError:  # its tables are still made
        return False


@pytest.mark.skipif(cuda_devices() > 0, reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_gpu_that_is_not_there_is_missed_before_anything_listens(folder: Path, device: str) -> None:
    with (folder / "config.toml").open("a") as file:
        file.write(f'\n[classifier]\ndevice = "{device}"\n')
    with socket.socket() as taken:  # nor is the port looked at
        taken.bind(("127.0.0.1", load(folder / "config.toml").node.port))
        taken.listen()
        assert f"device is '{device}', but no GPU is there" in refused(folder)
        assert "is in use" in refused(folder, "--roles", "receive,deliver")


def status(folder: Path) -> str:
    """Return what `status` says; something is wrong, so its exit code is 1."""
    done = command("status", "--config", folder / "config.toml", COLUMNS="120")
    assert done.returncode == 1
    return done.stdout


@pytest.mark.parametrize("app", [node_cli.app, classifier_cli.app], ids=["pacs-node", "classifier"])
def test_help_shows_every_word_of_what_is_said_of_options(app: typer.Typer) -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    for name, one in group.commands.items():
        shown = CliRunner().invoke(app, [name, "--help"], terminal_width=200, env={"COLUMNS": "200"}).stdout
        words = set(re.split(r"\s+", re.sub(r"[│╭╮╰╯─]", " ", shown)))
        for parameter in one.params:
            said = (getattr(parameter, "help", None) or "").replace("\\[", "[")
            assert set(said.split()) <= words, (name, parameter.name)


def test_help_shows_examples_and_comes_at_once() -> None:
    started = busy_seconds()
    for name in ("serve", "demo", "send", "echo", "results", "status", "retry"):
        done = command(name, "--help")
        assert done.returncode == 0
        assert "Example" in done.stdout
        assert f"pacs-node {name}" in done.stdout
    assert busy_seconds() - started < 20


def busy_seconds() -> float:
    """Return how long the processes that ended so far have computed; others may use the machine meanwhile."""
    times = os.times()
    return times.children_user + times.children_system


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("echo", "nonsense"), "write it as AE@HOST:PORT"),
        (("echo", "A@127.0.0.1:1"), "cannot be reached"),
        (("send", "no-such-file", "--to", "A@127.0.0.1:1"), "There is no file no-such-file"),
        (("results", "--since", "yesterday"), "is not a time"),
        (("results", "--since", "999999999d"), "is not a time"),
        (("ledger", "--until", "0001-01-01T00:00+14:00"), "is not a time"),
        (("results",), "`pacs-node serve` makes it"),
        (("status",), "`pacs-node serve` makes it"),
        (("retry",), "--failed for everything, or one STUDY_UID"),
        (("demo", "--images", "no-such-folder"), "is not a folder"),
    ],
)
def test_a_mistake_ends_in_one_sentence_and_exit_code_2(
    arguments: tuple[str, ...], sentence: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    done = command(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("pacs-node: ")
    assert sentence in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr


def test_what_is_not_dicom_is_named_and_not_sent(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not an image")
    done = command("send", tmp_path / "notes.txt", "--to", f"A@127.0.0.1:{free_port()}")
    assert done.returncode == 1
    assert "is no DICOM file" in done.stderr
    assert "0 of 1 files stored" in done.stderr
