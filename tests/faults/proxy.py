"""A wire between two peers that can be cut, or go silent, at any byte of what is said."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

_P_DATA_TF = 4  # PS3.8 9.3.1
_A_ABORT = bytes([7, 0, 0, 0, 0, 4, 0, 0, 0, 0])


@dataclass(frozen=True)
class Fault:
    """What happens to one connection.

    Attributes
    ----------
    direction
        ``up`` is from who connected to who listens.
    after
        How many bytes of P-DATA-TF PDUs of this direction come through before; what is negotiated all does.
    how
        ``fin`` ends both connections in good order, ``rst`` breaks them, ``abort`` puts A-ABORT in the place
        of the next PDU, ``stall`` lets nothing through any more, ``drip`` one byte a second.
    """

    direction: Literal["up", "down"]
    after: int
    how: Literal["fin", "rst", "abort", "stall", "drip"]


Plan = Callable[[int], Fault | None]
"""What happens to the connection of a number, from 0."""


class Proxy:
    """Listens on 127.0.0.1 and passes on what comes to another port there.

    Attributes
    ----------
    hits
        When, in monotonic seconds, a fault was.
    ended
        How many seconds after a stall or drip began a peer closed its connection.
    """

    def __init__(self, target: int, plan: Plan) -> None:
        self.hits: list[float] = []
        self.ended: list[float] = []
        self._target = target
        self._plan = plan
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._listener.settimeout(0.1)
        self.port = int(self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Proxy:
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stopped.set()
        self._thread.join()
        self._listener.close()

    def _accept(self) -> None:
        number = 0
        while not self._stopped.is_set():
            try:
                client, _ = self._listener.accept()
            except TimeoutError:
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self._target), timeout=5)
            except OSError:
                client.close()
                continue
            wire = _Wire(self, client, server, self._plan(number))
            number += 1
            wire.start()

    def hit(self) -> None:
        """Take note of a fault."""
        with self._lock:
            self.hits.append(time.monotonic())

    @property
    def is_stopped(self) -> bool:
        """Whether all is to end."""
        return self._stopped.is_set()


class _Wire:
    def __init__(
        self, proxy: Proxy, client: socket.socket, server: socket.socket, fault: Fault | None
    ) -> None:
        self._proxy = proxy
        self._ends = {"up": (client, server), "down": (server, client)}
        self._fault = fault
        self._hit_at: float | None = None
        for end in (client, server):
            end.settimeout(0.1)

    def start(self) -> None:
        for direction in self._ends:
            threading.Thread(target=self._pump, args=(direction,), daemon=True).start()

    def _pump(self, direction: str) -> None:
        source, sink = self._ends[direction]
        fault = self._fault if self._fault and self._fault.direction == direction else None
        passed, left, is_data = 0, 0, False
        head = b""
        with suppress(OSError):
            while not self._proxy.is_stopped:
                if self._hit_at is not None and fault is None:
                    self._wait_for_end(source)  # the other direction was hit
                    break
                # One PDU header, or a piece of a PDU
                content = self._receive(source, 6 - len(head) if left == 0 else min(left, 65536))
                if content is None:
                    continue
                if not content:
                    break
                is_start = left == 0
                if is_start:
                    head += content
                    if len(head) < 6:
                        continue
                    left, is_data = int.from_bytes(head[2:], "big"), head[0] == _P_DATA_TF
                    content, head = head, b""
                else:
                    left -= len(content)
                if (
                    fault
                    and is_data
                    and (is_start or fault.how != "abort")
                    and passed + len(content) > fault.after
                ):
                    keep = 0 if fault.how == "abort" else fault.after - passed
                    sink.sendall(content[:keep])
                    self._break(fault, source, sink, content[keep:])
                    return
                passed += len(content) if is_data else 0
                sink.sendall(content)
        self._close()

    def _receive(self, source: socket.socket, number: int) -> bytes | None:
        try:
            return source.recv(number)
        except TimeoutError:
            return None

    def _break(self, fault: Fault, source: socket.socket, sink: socket.socket, rest: bytes) -> None:
        self._hit_at = time.monotonic()
        self._proxy.hit()
        if fault.how in ("fin", "rst"):
            for end in (source, sink):
                if fault.how == "rst":
                    with suppress(OSError):
                        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._close()
        elif fault.how == "abort":
            sink.sendall(_A_ABORT)
            self._wait_for_end(sink)
            self._close()
        elif fault.how == "drip":
            with suppress(OSError):
                while rest and not self._proxy.is_stopped:
                    sink.sendall(rest[:1])
                    rest = rest[1:]
                    time.sleep(1)

    def _wait_for_end(self, end: socket.socket) -> None:
        """Wait until the peer that hears nothing more, or hardly anything, closes its connection."""
        while not self._proxy.is_stopped:
            content = self._receive(end, 65536)
            if content == b"":
                break
        assert self._hit_at is not None
        if not self._proxy.is_stopped:
            self._proxy.ended.append(time.monotonic() - self._hit_at)

    def _close(self) -> None:
        for end, _ in self._ends.values():
            with suppress(OSError):
                if self._fault is None or self._fault.how != "rst" or self._hit_at is None:
                    end.shutdown(socket.SHUT_RDWR)
            with suppress(OSError):
                end.close()
