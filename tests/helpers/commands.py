"""The commands of the node, as processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pacs_node.demo.peers import free_port

_PATIENCE = 240.0


def command(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `pacs-node` as a person does."""
    return subprocess.run(
        [sys.executable, "-m", "pacs_node", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


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
