"""Peers that talk nonsense: good conversations and what a seeded generator makes of them, against a receiver.

Whatever they say, no thread may fail, no file may stay behind, nothing may hang, memory may not grow, and an
honest sender may not wait.
"""

from __future__ import annotations

import random
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from pacs_node.demo.peers import NodeProcess, free_port
from tests.helpers import wire

_AT_ONCE = 8
_ROUND = 200  # connections between looks
_PATIENCE = 5.0  # seconds
_MOST_GROWTH = 64  # MiB of a process, after the first rounds
_WARM_ROUNDS = 3
_BAD_EVENTS = ("crashed", "association failed", "instance not stored", "a fault of the node", "Traceback")

Parts = list[bytes]


def conversation(chance: random.Random) -> Parts:
    """Return what one peer sends, PDU by PDU: proper most of the time, then damaged."""
    parts = chance.choice([_storing, _echoing, _committing, _reporting, _asking])(chance)
    for _ in range(chance.choice([0, 1, 1, 1, 2, 4])):
        parts = chance.choice(_DAMAGES)(chance, parts)
    return parts


def _fragments(
    chance: random.Random, context_id: int, content: bytes, *, is_command: bool
) -> Iterator[bytes]:
    """Yield PDUs with the fragments of a command or a data set."""
    cuts = sorted(chance.randrange(len(content) + 1) for _ in range(chance.choice([0, 0, 0, 1, 3])))
    pieces = [content[start:end] for start, end in zip([0, *cuts], [*cuts, len(content)], strict=True)]
    values = [
        wire.value(context_id, (2 if number == len(pieces) else 0) | is_command, piece)
        for number, piece in enumerate(pieces, 1)
    ]
    if chance.random() < 0.3:
        yield wire.data(*values)
    else:
        yield from (wire.data(one) for one in values)


def _message(chance: random.Random, context_id: int, command: bytes, data_set: bytes = b"") -> Parts:
    parts = list(_fragments(chance, context_id, command, is_command=True))
    return parts + (list(_fragments(chance, context_id, data_set, is_command=False)) if data_set else [])


def _storing(chance: random.Random) -> Parts:
    parts = [wire.request()]
    for number in range(chance.choice([1, 1, 2, 5])):
        instance = f"1.2.3.{chance.randrange(50)}"
        command = wire.store_command(
            instance, chance.choice([wire.CR, wire.CR, wire.VERIFICATION, "1.2"]), number
        )
        parts += _message(chance, chance.choice([1, 1, 1, 3, 5, 9]), command, wire.radiograph(instance))
    return [*parts, wire.RELEASE]


def _echoing(chance: random.Random) -> Parts:
    return [wire.request(), *_message(chance, chance.choice([3, 3, 1, 2]), wire.echo_command()), wire.RELEASE]


def _committing(chance: random.Random) -> Parts:
    content = wire.references(chance.choice([0, 1, 3, 200]))
    return [wire.request(), *_message(chance, 7, wire.action_command(), content), wire.RELEASE]


def _reporting(chance: random.Random) -> Parts:
    """Commands of any kind, with any element wrong."""
    elements = {
        "e0002": wire.uid(chance.choice([wire.COMMITMENT, wire.CR, wire.VERIFICATION, ""])),
        "e0100": wire.number(
            chance.choice([0x100, 0x130, 0x8001, 0x8030, 0x8100, 0x20, 0xFFF, 0x30, 0xFFFF])
        ),
        "e0110": wire.number(chance.randrange(65_536)),
        "e0120": wire.number(chance.randrange(3)),
        "e0800": wire.number(chance.choice([0x101, 1])),
        "e0900": wire.number(chance.choice([0, 0xFF00])),
        "e1000": wire.uid("1.2.840.10008.1.20.1.1"),
        "e1002": wire.number(chance.randrange(3)),
    }
    for name in chance.sample(sorted(elements), chance.choice([0, 1, 2, 4])):
        elements[name] = chance.choice([b"", b"\0", chance.randbytes(5), b"1.2\\3 "])
        if chance.random() < 0.5:
            del elements[name]
    messages = [
        part
        for _ in range(chance.choice([1, 1, 3]))
        for part in _message(
            chance, chance.choice([1, 3, 7, 7]), wire.command(**elements), wire.references(1)
        )
    ]
    return [wire.request(), *messages, wire.RELEASE]


def _asking(chance: random.Random) -> Parts:
    """Requests for associations with anything odd."""
    contexts = b"".join(
        wire.proposed(
            chance.choice([1, 3, 3, 5, 2, 0, 255]),
            chance.choice([wire.CR.encode(), b"", b"1.2\0", chance.randbytes(9), b"1" * 70]),
            [chance.choice([b"1.2.840.10008.1.2", b"", b"1.2.840.10008.1.2 ", chance.randbytes(4)])],
        )
        for _ in range(chance.choice([0, 1, 2, 130]))
    )
    users = b"".join(
        wire.item(
            chance.choice([0x51, 0x52, 0x53, 0x54, 0x55, 0x56, 0x57, 0x58, 0x99]), chance.randbytes(size)
        )
        for size in (chance.choice([0, 1, 2, 4, 16, 40]) for _ in range(chance.randrange(6)))
    )
    titles = [b"PACS_NODE", b"", b"\0" * 16, b"A\0", chance.randbytes(16), b"\x1b[31m"]
    asked = wire.request(
        contexts, called=chance.choice(titles), calling=chance.choice(titles), user=users,
        version=chance.choice([1, 1, 1, 0, 2, 3]),
        application=chance.choice([wire.APPLICATION, wire.APPLICATION, None, b"", chance.randbytes(5)]),
    )  # fmt: skip
    return [asked, *_message(chance, 3, wire.echo_command()), wire.RELEASE]


def _flip(chance: random.Random, parts: Parts) -> Parts:
    at = chance.randrange(len(parts))
    content = bytearray(parts[at])
    for _ in range(chance.choice([1, 1, 3, 20])):
        if content:
            content[min(chance.randrange(len(content)), chance.randrange(len(content)))] = chance.randrange(
                256
            )
    return [*parts[:at], bytes(content), *parts[at + 1 :]]


def _cut(chance: random.Random, parts: Parts) -> Parts:
    at = chance.randrange(len(parts))
    return [
        *parts[:at],
        parts[at][: chance.randrange(len(parts[at]) + 1)],
        *parts[at + chance.randrange(2) + 1 :],
    ]


def _drop(chance: random.Random, parts: Parts) -> Parts:
    at = chance.randrange(len(parts))
    return [*parts[:at], *parts[at + 1 :]] or [b""]


def _repeat(chance: random.Random, parts: Parts) -> Parts:
    at = chance.randrange(len(parts))
    return [*parts[: at + 1], *[parts[at]] * chance.choice([1, 1, 5]), *parts[at + 1 :]]


def _shuffle(chance: random.Random, parts: Parts) -> Parts:
    first, *rest = parts
    chance.shuffle(rest)
    return [first, *rest] if chance.random() < 0.8 else [*rest, first]


def _insert(chance: random.Random, parts: Parts) -> Parts:
    at = chance.randrange(len(parts) + 1)
    size = chance.choice([0, 4, 10, 300])
    lie = chance.choice([None, None, 0, 3, 2**20, 2**32 - 1])
    odd = chance.choice(
        [
            wire.pdu(chance.choice([0, 1, 2, 3, 4, 5, 6, 7, 8, 0x16, 255]), chance.randbytes(size), lie),
            wire.data(wire.value(1, chance.randrange(256), chance.randbytes(size), lie)),
            wire.ABORT, wire.RELEASE, chance.randbytes(size), wire.data(),
        ]
    )  # fmt: skip
    return [*parts[:at], odd, *parts[at:]]


_DAMAGES: list[Callable[[random.Random, Parts], Parts]] = [_flip, _cut, _drop, _repeat, _shuffle, _insert]


def talk(port: int, seed: int) -> str:
    """Hold one conversation; return what was wrong with the receiver, or ""."""
    chance = random.Random(seed)
    parts = conversation(chance)
    ending = chance.choice(["close", "reset", "wait", "wait"])
    with suppress(OSError):
        connection = wire.connect(port, f"127.0.0.{chance.randrange(2, 250)}", timeout=_PATIENCE)
        try:
            if chance.random() < 0.7:  # the answer to the request is awaited
                connection.sendall(parts.pop(0))
                connection.settimeout(0.3)
                with suppress(TimeoutError):
                    connection.recv(6)
            connection.settimeout(_PATIENCE)
            for part in parts:
                connection.sendall(part)
                if chance.random() < 0.1:
                    time.sleep(0.005)
            if ending == "reset":
                wire.reset(connection)
            elif ending == "wait":
                return _waits(connection)
        finally:
            connection.close()
    return ""


def _waits(connection: socket.socket) -> str:
    """A receiver whose peer says no more closes as well."""
    connection.shutdown(socket.SHUT_WR)
    deadline = time.monotonic() + _PATIENCE
    try:
        while connection.recv(2**16):
            if time.monotonic() > deadline:
                return "the connection is still open"
    except TimeoutError:
        return "the connection is still open"
    return ""


def honest(port: int) -> str:
    """Send as others do; return what was wrong, or ""."""
    since = time.monotonic()
    try:
        connection = wire.associated(port, timeout=2 * _PATIENCE)
        status = wire.store(connection, "1.2.3.4711")
        wire.release(connection)
    except (OSError, AssertionError) as error:
        return f"an honest sender was not served: {error!r}"
    seconds = time.monotonic() - since
    if status != 0:
        return f"an honest sender was answered 0x{status:04X}"
    return f"an honest sender waited {seconds:.1f} s" if seconds > _PATIENCE else ""


@dataclass
class Target:
    """A receiver that is talked to.

    Attributes
    ----------
    said
        Returns what it logged so far.
    """

    port: int
    incoming: Path
    said: Callable[[], str]
    pids: list[int] = field(default_factory=list)

    def memory(self) -> int:
        """Return the MiB that its largest process has."""
        return max((_resident(pid) for pid in self.pids), default=0)


def talk_to(target: Target, count: int, seed: int) -> list[str]:
    """Hold so many conversations; return what was wrong."""
    findings: list[str] = []
    at_first = 0
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for number, start in enumerate(range(seed, seed + count, _ROUND)):
            seeds = range(start, min(start + _ROUND, seed + count))
            for one, wrong in zip(seeds, pool.map(lambda s: talk(target.port, s), seeds), strict=True):
                findings += [f"seed {one}: {wrong}"] if wrong else []
            findings += [f"after seed {seeds[-1]}: {wrong}" for wrong in _look(target)]
            if number < _WARM_ROUNDS:
                at_first = target.memory()
            if len(findings) > 20:
                break
    growth = target.memory() - at_first
    findings += [f"memory grew by {growth} MiB"] if growth > _MOST_GROWTH else []
    said = target.said()
    return findings + [f"the log says {event!r}" for event in _BAD_EVENTS if event in said]


def _look(target: Target) -> Iterator[str]:
    wrong = honest(target.port)
    if wrong:
        yield wrong
    deadline = time.monotonic() + _PATIENCE
    while left := [path for path in target.incoming.rglob("*") if path.is_file()]:
        if time.monotonic() > deadline:
            yield f"{len(left)} files stay in {target.incoming}"
            return
        time.sleep(0.05)


def _resident(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) // 1024


def run(count: int, seed: int) -> list[str]:
    """Start a node, and hold so many conversations with it; return what was wrong."""
    with tempfile.TemporaryDirectory() as name, _node(Path(name)) as target:
        return talk_to(target, count, seed)


@contextmanager
def _node(folder: Path) -> Iterator[Target]:
    port, config, log = free_port(), folder / "config.toml", folder / "node.log"
    config.write_text(
        f'[node]\nhost = "127.0.0.1"\nport = {port}\n[log]\nformat = "json"\n'
        "[receive]\nprocesses = 2\nmin_free_mebibytes = 0\n"
    )
    with NodeProcess(config, log, "receive") as process:
        process.wait_until_ready()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="utf-8")
        pids = [int(child) for child in children.split()]
        yield Target(port, folder / "spool" / "incoming", log.read_text, pids)
