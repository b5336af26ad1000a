"""A node in processes that can be killed, frozen and started anew, one for each role."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from db.session import Database
from pacs_node.config import ENVIRONMENT_PREFIX
from pacs_node.demo.peers import free_port

_SABOTAGE = Path(__file__).parent / "sabotage"
_START_SECONDS = 120.0
SUPERVISOR = "serve"
"""In the place of a role: `pacs-node serve`, which starts them all, and again when they die."""
_UP = {"receive": "listening", "score": "model loaded", "deliver": None, SUPERVISOR: "ready"}
ROLES = ("receive", "score", "deliver")


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> float:
    """Wait until a condition holds; return how many seconds that took."""
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > seconds:
            raise AssertionError(f"waited {seconds:.0f} s in vain for {what}")
        time.sleep(0.02)
    return time.monotonic() - started


class Role:
    """One process of the node; it is not started again by itself.

    Parameters
    ----------
    point
        Where it is to kill itself, as `sabotage` knows it: ``"receive: before a write:3"`` is the third time.
    """

    def __init__(self, world: World, name: str, point: str = "", **environment: str) -> None:
        self.name = name
        self.log = world.folder / f"{name}-{time.monotonic_ns()}.log"
        self._done = world.folder / f"done-{time.monotonic_ns()}"
        what = [name] if name == SUPERVISOR else ["role", name]
        command = [sys.executable, "-m", "pacs_node", *what, "--config", str(world.config)]
        plain = {k: v for k, v in os.environ.items() if not k.startswith(ENVIRONMENT_PREFIX)}
        plain |= {"PYTHONPATH": str(_SABOTAGE), "SABOTAGE": point, "SABOTAGE_DONE": str(self._done)}
        plain |= {"LIGHT_MODEL": "1"} if world.is_light else {}
        self._arm = self._done.with_name(self._done.name.replace("done", "arm"))
        plain |= {"SABOTAGE_ARM": str(self._arm)} if world.is_armed else {}
        plain |= environment
        with self.log.open("wb") as log:
            self.popen = subprocess.Popen(
                [*world.launcher, *command], stderr=log, stdin=subprocess.DEVNULL, env=plain
            )

    def wait_until_ready(self) -> None:
        """Return when it is at work."""
        event = _UP[self.name]

        def is_up() -> bool:
            assert self.popen.poll() is None, (
                f"{self.name} ended with {self.popen.poll()}: {self.text()[-2000:]}"
            )
            return event is None or any(one.get("event") == event for one in self.events())

        wait_for(is_up, f"{self.name} to start", _START_SECONDS)

    def events(self) -> list[dict[str, Any]]:
        """Return what it logged."""
        found = []
        for line in self.text().splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found

    def has_event(self, name: str) -> bool:
        """Tell whether it logged such an event."""
        return self.count(name) > 0

    def count(self, name: str) -> int:
        """Tell how often it logged such an event."""
        return sum(one.get("event") == name for one in self.events())

    def text(self) -> str:
        """Return its log as it is."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def arm(self, point: str) -> None:
        """Say where it is to die from now on; only where the world `is_armed`."""
        written = self._arm.with_suffix(".new")
        written.write_text(point)
        written.replace(self._arm)

    def disarm(self) -> None:
        """Let it be armed once more, after a signal that it outlived."""
        self._arm.unlink(missing_ok=True)
        self._done.unlink(missing_ok=True)

    @property
    def has_died(self) -> bool:
        """Whether it reached the point where it was to die."""
        return self._done.exists()

    def send_signal(self, number: int) -> None:
        """Send a signal to the very process."""
        self.popen.send_signal(number)

    def kill(self) -> None:
        """End it as a loss of power would, as far as the process is concerned."""
        self.popen.kill()
        self.popen.wait()

    def stop(self) -> None:
        """End it in good order."""
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGCONT)
            self.popen.terminate()
            try:
                self.popen.wait(60)
            except subprocess.TimeoutExpired:
                self.kill()


@dataclass
class World:
    """Settings, database and spool of one node, and its processes.

    Attributes
    ----------
    is_light
        Whether a stand-in without torch scores.
    is_armed
        Whether `Role.arm` counts, and not the point with which a role is started.
    launcher
        What each process is started with, such as ``("ip", "netns", "exec", ...)``.
    """

    folder: Path
    url: str
    destinations: Mapping[str, int]  # name and AE title, port on 127.0.0.1
    sections: str = ""
    host: str = "127.0.0.1"
    port: int = field(default_factory=free_port)
    is_light: bool = True
    is_armed: bool = False
    lease_seconds: float = 2.0
    launcher: tuple[str, ...] = ()
    roles: dict[str, Role] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.configure()
        self.database = Database(self.url)
        self.database.upgrade()

    @property
    def config(self) -> Path:
        """The settings of its processes."""
        return self.folder / "config.toml"

    @property
    def spool(self) -> Path:
        """The folder of received objects."""
        return self.folder / "spool"

    def configure(self) -> None:
        """Write config.toml; processes that run keep what they read."""
        blocks = [
            f'[[destinations]]\nname = "{name}"\nae_title = "{name}"\nhost = "127.0.0.1"\nport = {port}'
            for name, port in self.destinations.items()
        ]
        standard = {
            "node": f'host = "{self.host}"\nport = {self.port}',
            "receive": "min_free_mebibytes = 0",
            "database": f'url = "{self.url}"',
            "study": "quiet_seconds = 0.5",
            "work": f"lease_seconds = {self.lease_seconds}",
            "deliver": "retry_seconds = 0.2\nmax_retry_seconds = 1\ncommit_seconds = 2\nconnect_seconds = 5\n"
            "answer_seconds = 5",
            "log": 'format = "json"',
        }
        kept = [f"[{name}]\n{keys}" for name, keys in standard.items() if f"[{name}]" not in self.sections]
        self.config.write_text("\n".join([*kept, self.sections, *blocks]))

    def start(self, *names: str, point: str = "", **environment: str) -> None:
        """Start roles, all of them by default, and wait until they are at work."""
        started = [Role(self, name, point, **environment) for name in names or ROLES]
        self.roles |= {role.name: role for role in started}
        for role in started:
            if not point:
                role.wait_until_ready()

    def kill(self, name: str) -> None:
        """Kill one role."""
        self.roles[name].kill()

    def stop(self) -> None:
        """End all."""
        for role in self.roles.values():
            role.stop()
        self.database.close()

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()
