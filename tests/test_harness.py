"""What hangs, dies or leaks in a run of tests fails alone, says where, and leaves the run to go on."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TESTS = """
import os, pathlib, signal, socket, subprocess, threading, time
import pytest

kept = []

def listening():
    made = socket.socket()
    made.bind(("127.0.0.1", 0))
    made.listen()
    return made

def test_keeps_a_socket():
    kept.append(listening())

def test_forgets_a_socket():
    ring = [listening()]
    ring.append(ring)

def test_keeps_a_program():
    kept.append(subprocess.Popen(["sleep", "1000"]))

@pytest.fixture(scope="module")
def server():
    with listening() as made:
        yield made

def test_uses_a_server_of_the_module(server):
    assert server.fileno() > 0

def test_ends_what_it_began():
    thread = threading.Thread(target=time.sleep, args=(0.2,))
    thread.start()
    listening().close()
    subprocess.run(["true"], check=True)

def test_sleeps():
    time.sleep(1000)

@pytest.fixture
def program():
    started = subprocess.Popen(["sleep", "1000"])
    yield
    started.wait()

def test_waits_for_its_program_in_the_end(program):
    pass

def test_cannot_be_interrupted():
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    time.sleep(1000)

def test_dies_and_leaves_a_child_at_its_pipe():
    child = os.fork()
    if child == 0:
        time.sleep(1000)
    pathlib.Path(__file__).with_name("child").write_text(str(child))
    os.kill(os.getpid(), signal.SIGKILL)

def test_dies_too():
    os._exit(3)

@pytest.mark.parametrize("number", range(20))
def test_comes_after(number):
    pass
"""
CARELESS = """
import socket
import pytest

@pytest.fixture(scope="module")
def careless():
    made = socket.socket()
    made.bind(("127.0.0.1", 0))
    made.listen()
    return made

def test_uses_the_careless_server(careless):
    assert careless.fileno() > 0
"""


@dataclass
class Outcome:
    """How a run of `TESTS` ended."""

    code: int
    said: str
    child: int

    def of(self, verdict: str) -> set[str]:
        """Return the tests with a verdict of pytest: PASSED, FAILED, or ERROR in set-up or tear-down."""
        return set(re.findall(rf"^{verdict} \S*::test_(\w+)", self.said, re.MULTILINE))


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    folder = tmp_path_factory.mktemp("harness")
    (folder / "test_all.py").write_text(TESTS)
    (folder / "test_careless.py").write_text(CARELESS)
    options = ["-p", "tests.harness.plugin", "-p", "no:cacheprovider", "-c", os.devnull, "-W", "error", "-rA"]
    options += ["-o", "limit_seconds=3", "-o", "stuck_seconds=2", "--rootdir", str(folder)]
    command = [sys.executable, "-m", "pytest", *options, "-n", "2", "--dist", "worksteal", str(folder)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=folder)
    return Outcome(done.returncode, done.stdout, int((folder / "child").read_text()))


def test_only_what_hung_died_or_leaked_fails(outcome: Outcome) -> None:
    assert outcome.code == 1, outcome.said
    assert outcome.of("FAILED") == {
        "sleeps",
        "cannot_be_interrupted",
        "dies_and_leaves_a_child_at_its_pipe",
        "dies_too",
    }
    assert outcome.of("ERROR") == {
        "keeps_a_socket",
        "forgets_a_socket",
        "keeps_a_program",
        "waits_for_its_program_in_the_end",
        "uses_the_careless_server",
    }
    assert outcome.of("PASSED") >= {"uses_a_server_of_the_module", "ends_what_it_began", "comes_after"}
    assert len(re.findall(r"^PASSED \S*::test_comes_after", outcome.said, re.MULTILINE)) == 20


@pytest.mark.parametrize(
    "sentence",
    [
        r"The test left a socket that listens: .*\n.*in test_keeps_a_socket\n(.*\n)*?.*in listening",
        r"unclosed <socket",
        r"The test left a program: .*'sleep', '1000'.*\n.*in test_keeps_a_program",
        r"The fixture careless left a socket that listens",
        r"The call took longer than 3 seconds",
        r"The teardown took longer than 3 seconds",
        r"crashed while running '\S*test_cannot_be_interrupted'\nTimeout.*\n(.*\n)*?.*in test_cannot_be",
        r"stacks of all threads call -+\n(.*\n)*?.*in test_sleeps",
    ],
)
def test_the_run_says_what_went_wrong_and_where(outcome: Outcome, sentence: str) -> None:
    assert re.search(sentence, outcome.said), outcome.said


def test_what_a_dead_worker_started_is_ended(outcome: Outcome) -> None:
    _until(lambda: not Path(f"/proc/{outcome.child}").exists())


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
