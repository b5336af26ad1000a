"""The commands of the node, as a person runs them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path
from typing import Any
from unittest.mock import patch

from db.session import Database
from pacs_node.cli import main
from pacs_node.demo.peers import free_port

_PATIENCE = 240.0
_OPEN = Database.__init__


def command(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `pacs-node` as a person does, but in this process: to start one takes a second or two.

    What starts processes and waits for signals runs in one of its own.
    """
    asked = ["pacs-node", *map(str, arguments)]
    if asked[1] in ("serve", "demo"):
        call = [sys.executable, "-m", "pacs_node", *asked[1:]]
        kept = {**os.environ, **environment}
        return subprocess.run(call, capture_output=True, text=True, check=False, env=kept)
    with patch.dict(os.environ, environment):
        return in_this_process(main, *asked)


def in_this_process(
    program: Callable[[], None], *asked: str, typed: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run the main function of a program.

    Parameters
    ----------
    asked
        Its name and its arguments.
    typed
        What it reads from standard input.
    """
    said, complained = _text(), _text()
    with (
        _databases_closed(),
        patch.object(sys, "argv", [*asked]),
        patch.object(sys, "stdin", StringIO(typed)),
        redirect_stdout(said),
        redirect_stderr(complained),
    ):
        code = _exit_code(program)
    return subprocess.CompletedProcess([*asked], code, _said(said), _said(complained))


@contextmanager
def _databases_closed() -> Iterator[None]:
    """Close what a command leaves open: the end of its process would."""
    opened: list[Database] = []

    def noted(self: Database, *given: Any, **named: Any) -> None:
        _OPEN(self, *given, **named)
        opened.append(self)

    with patch.object(Database, "__init__", noted):
        try:
            yield
        finally:
            for database in opened:
                database.close()


def _exit_code(program: Callable[[], None]) -> int:
    try:
        program()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _text() -> TextIOWrapper:
    return TextIOWrapper(BytesIO(), encoding="utf-8", newline="")


def _said(text: TextIOWrapper) -> str:
    text.flush()
    content = text.buffer
    assert isinstance(content, BytesIO)
    return content.getvalue().decode().replace("\r\n", "\n")


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.05)


def configure(folder: Path, url: str, pacs_port: int, port: int | None = None, **sections: str) -> int:
    """Write a config.toml; return the port of the node."""
    port = port or free_port()
    (folder / "config.toml").write_text(
        f"""
[node]
host = "127.0.0.1"
port = {port}
[receive]
min_free_mebibytes = 16
processes = 1
[database]
url = "{url}"
[study]
quiet_seconds = 0.5
[work]
lease_seconds = 3
[deliver]
retry_seconds = 0.2
[log]
format = "json"
[[destinations]]
name = "PACS"
ae_title = "ORTHANC"
host = "127.0.0.1"
port = {pacs_port}
"""
        + "\n".join(sections.values())
    )
    return port
