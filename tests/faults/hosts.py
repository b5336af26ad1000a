"""Two machines of one node; one of them is cut off in the middle of its work, and comes back."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from sqlalchemy import func, select

from db.models import Delivery, Report, Study
from tests.faults.judge import Image, judge
from tests.faults.pacs import Pacs
from tests.faults.scenario import Outcome, Scenario, Skipped
from tests.faults.senders import Modality, flat, studies
from tests.faults.world import World, wait_for
from tests.helpers.postgres import OwnServer, own_folder

_NET = "198.18.77"  # of the addresses for tests of devices, RFC 2544
_CENTRE = f"{_NET}.1"
_PORT = 11112
_CUT_SECONDS = 32.0  # at least; longer than senders wait for an answer
_TAKEOVER = 120.0  # seconds; a few on a machine that does nothing else
_LOCKED_SECONDS = 45.0
_PAUSE = "25"


class Net:
    """A bridge, with a network namespace for each machine beside this one.

    Parameters
    ----------
    names
        Of the machines; they get the addresses from .11 on.
    """

    def __init__(self, *names: str) -> None:
        tag = f"{os.getpid() % 100_000}"
        self._bridge = f"pnb{tag}"
        self._spaces = {name: f"pn-{tag}-{name}" for name in names}
        self._links = {name: f"pn{tag}{name}" for name in names}
        self.hosts = {name: f"{_NET}.{number}" for number, name in enumerate(names, 11)}

    def __enter__(self) -> Net:
        if os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("unshare") is None:
            raise Skipped("Network namespaces need root, iproute2 and unshare.")
        try:
            self._make()
        except subprocess.CalledProcessError as error:
            self.__exit__()
            raise Skipped(f"No network namespaces can be made here: {error.stderr.strip()}") from error
        except BaseException:
            self.__exit__()
            raise
        return self

    def _make(self) -> None:
        _ip("link", "add", self._bridge, "type", "bridge")
        _ip("addr", "add", f"{_CENTRE}/24", "dev", self._bridge)
        _ip("link", "set", self._bridge, "up")
        for name, space in self._spaces.items():
            link = self._links[name]
            _ip("netns", "add", space)
            _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", space)
            _ip("link", "set", link, "master", self._bridge, "up")
            _ip("-n", space, "addr", "add", f"{self.hosts[name]}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", space, "link", "set", device, "up")

    def __exit__(self, *_exception: object) -> None:
        for space in self._spaces.values():
            subprocess.run(["ip", "netns", "del", space], capture_output=True, check=False)
        subprocess.run(["ip", "link", "del", self._bridge], capture_output=True, check=False)

    def launcher(self, name: str) -> tuple[str, ...]:
        """Return what starts a process on a machine, under its own host name."""
        named = f'hostname {name} && exec "$@"'
        return ("ip", "netns", "exec", self._spaces[name], "unshare", "--uts", "sh", "-c", named, "sh")

    def cut(self, name: str) -> None:
        """Pull the plug: nothing gets to a machine or comes from it, and nobody is told."""
        _ip("link", "set", self._links[name], "nomaster")

    def mend(self, name: str) -> None:
        """Put it in again."""
        _ip("link", "set", self._links[name], "master", self._bridge)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def _site(stack: ExitStack, folder: Path) -> tuple[Net, Pacs, list[World]]:
    """Return a net with a PACS, a PostgreSQL and two machines, whose processes are not started yet."""
    net = stack.enter_context(Net("left", "right"))
    server = stack.enter_context(OwnServer(stack.enter_context(own_folder()), address=_CENTRE))
    pacs = stack.enter_context(Pacs(host=_CENTRE))
    sections = f'[spool]\npath = "{folder / "left" / "spool"}"\n'
    sections += f'[[destinations]]\nae_title = "PACS"\nhost = "{_CENTRE}"\nport = {pacs.port}\n'
    url = server.create()
    worlds = [
        World(folder / name, url, {}, sections, host=host, port=_PORT, launcher=net.launcher(name))
        for name, host in net.hosts.items()
    ]
    for world in worlds:
        stack.enter_context(world)
    return net, pacs, worlds


def _send(first: Modality, second: Modality, files: Iterable[Sequence[Path]]) -> None:
    """Send each study to one machine, or to the other where that fails."""
    for mine in files:
        left: Sequence[Path] = mine
        for turn in range(20):
            left = (first, second)[turn % 2].send_once(left)
            if not left:
                break
            time.sleep(0.2)
        assert not left, "a study was stored nowhere"


def _reported(world: World, images: Iterable[Image]) -> int:
    """Return of how many studies a report was delivered."""
    with world.database.read() as session:
        statement = (
            select(func.count(Study.id.distinct()))
            .join(Report, Report.study_id == Study.id)
            .join(Delivery, Delivery.report_id == Report.id)
            .where(Delivery.state == "delivered", Study.study_instance_uid.in_([s for s, _ in images]))
        )
        return int(session.scalar(statement) or 0)


def _cut_off(folder: Path, url: str) -> Outcome:
    """A machine is cut off while it scores a batch, and inside a transaction; the other one takes over."""
    with ExitStack() as stack:
        net, pacs, (left, right) = _site(stack, folder)
        left.start("receive", point="receive: rows and file written, before commit:1", SABOTAGE_PAUSE=_PAUSE)
        left.start("score", point="worker: worked, before settling:3", SABOTAGE_PAUSE=_PAUSE)
        left.start("deliver")
        right.start()
        for role in left.roles.values():
            role.wait_until_ready()
        to_left, to_right = (Modality(_PORT, host=host) for host in net.hosts.values())
        shared = studies(folder / "shared", 1, 2)[0]
        files = studies(folder / "sent", 60)
        with ThreadPoolExecutor(5) as pool:
            # The first image keeps the row of its study locked on the machine that will be cut off
            work = [pool.submit(_send, to_left, to_right, [shared[:1]])]
            wait_for(lambda: left.roles["receive"].has_died, "a transaction in which to cut")
            pairs = ((to_left, to_right), (to_right, to_left))
            work += [pool.submit(_send, *pairs[n % 2], files[n::4]) for n in range(4)]
            wait_for(lambda: left.roles["score"].has_died, "a batch in which to cut")
            known = to_left.acknowledged | to_right.acknowledged
            net.cut("left")
            cut = time.monotonic()
            wait_for(lambda: _reported(right, known) == len(known), "the takeover", _TAKEOVER)
            to_right.send(shared[1:], seconds=60)
            unlocked = time.monotonic() - cut
            time.sleep(max(0.0, _CUT_SECONDS - unlocked))
            net.mend("left")
            mended = time.monotonic()
            for one in work:
                one.result()
        images = to_left.acknowledged | to_right.acknowledged
        verdict = judge(left, images, pacs.reports, files=flat([*files, shared]))
        seconds = time.monotonic() - mended
        assert len(known) >= 4, f"only {len(known)} images came before"
        assert unlocked < _LOCKED_SECONDS, f"a study was locked for {unlocked:.0f} s"
        assert len(images) == 62, f"{len(images)} images of 62"
        said = {one.get("event") for one in left.roles["score"].events()}
        assert "job taken over" in said, f"nobody took over: {said}"
        return Outcome(len(known), verdict, seconds)


def _cut_off_at_a_batch(folder: Path, url: str) -> Outcome:
    """The same with what is sent to the other machine, so that no sender has to wait."""
    with ExitStack() as stack:
        net, pacs, (left, right) = _site(stack, folder)
        left.start("score", point="worker: worked, before settling:1", SABOTAGE_PAUSE="6")
        right.start("receive", "deliver")
        left.roles["score"].wait_until_ready()
        files = studies(folder / "sent", 6)
        modality = Modality(_PORT, host=net.hosts["right"])
        modality.send_all(files, 2)
        wait_for(lambda: left.roles["score"].has_died, "a batch in which to cut")
        net.cut("left")
        right.start("score")
        cut = time.monotonic()
        known = modality.acknowledged
        wait_for(lambda: _reported(right, known) == len(known), "the takeover", _TAKEOVER)
        seconds = time.monotonic() - cut
        net.mend("left")
        wait_for(lambda: left.roles["score"].has_event("job taken over"), "the one that was cut off", 30)
        return Outcome(1, judge(left, known, pacs.reports, files=flat(files)), seconds)


SCENARIOS = [
    Scenario("hosts: one of two is cut off at work", _cut_off, ("postgresql",), _cut_off_at_a_batch),
]
