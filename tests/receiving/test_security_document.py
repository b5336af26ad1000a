"""The commands of docs/security.md, as they stand there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from db.session import Database
from pacs_node.config import load
from pacs_node.demo.peers import free_port
from pacs_node.receiving.receiver import Receiver
from pacs_node.storage.spool import Spool
from tests.helpers.peers import program

DOCUMENTED = Path(__file__).parents[2] / "docs" / "security.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOCUMENTED.read_text(), re.DOTALL)


def test_a_trial_with_openssl_ends_with_an_echo_over_tls(tmp_path: Path) -> None:
    program("openssl")
    making, asking = blocks("sh")
    subprocess.run(["bash", "-euc", making], cwd=tmp_path, check=True, capture_output=True)
    strict, section = blocks("toml")
    assert strict.startswith("[receive]")
    port, config = free_port(), tmp_path / "config.toml"
    assert "2762" in section
    config.write_text(f'[node]\nhost = "127.0.0.1"\nport = 0\n{section.replace("2762", str(port))}')
    settings = load(config)
    database = Database(settings.database.url)
    database.upgrade()
    spool = Spool(settings.spool.path)
    spool.prepare()
    receiver = Receiver(settings, database, spool)
    receiver.start()
    try:
        options = asking.replace("2762", str(port)).split()[1:]
        command = [sys.executable, "-m", "pacs_node", *options, "--config", str(config)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    finally:
        receiver.stop()
        database.close()
    assert done.returncode == 0, done.stderr
    assert "is there" in done.stdout


def test_the_document_names_each_choice() -> None:
    for choice in ("required", "optional", "none"):
        assert f'`"{choice}"`' in DOCUMENTED.read_text()
