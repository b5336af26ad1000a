"""What the demonstration needs: a node in its own process, and a PACS that keeps reports."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset
from pynetdicom import AE, evt

from pacs_node.config import ENVIRONMENT_PREFIX
from pacs_node.errors import UserError
from pacs_node.network.association import let_end
from pacs_node.reporting.report import REPORT_CLASSES

_START_SECONDS = 600
_END_SECONDS = 2  # for associations that are about to end
_CERTAINTY, _SOURCE = "111012", "121112"  # DCM: Certainty of Finding, Source of Measurement


@dataclass(frozen=True)
class ReturnedReport:
    """One report as the PACS has it; `percent` holds its scores by SOP Instance UID of the image."""

    path: Path
    arrived: float  # monotonic seconds
    patient_id: str
    study_instance_uid: str
    sop_instance_uid: str
    percent: dict[str, str]


class DemoPacs:
    """A storage SCP for structured reports, which answers the very first one with 0xA700.

    Parameters
    ----------
    folder
        Folder for the reports.
    port
        TCP port on 127.0.0.1.
    """

    def __init__(self, folder: Path, port: int) -> None:
        self.reports: list[ReturnedReport] = []
        self.refused = 0
        self._folder = folder
        self._port = port
        self._lock = threading.Lock()
        self._ae = AE("DEMO_PACS")
        for sop_class in REPORT_CLASSES:
            self._ae.add_supported_context(sop_class)

    def __enter__(self) -> DemoPacs:
        self._folder.mkdir()
        handlers: list[Any] = [(evt.EVT_C_STORE, self._on_c_store)]
        self._ae.start_server(("127.0.0.1", self._port), block=False, evt_handlers=handlers)
        return self

    def __exit__(self, *_exception: object) -> None:
        shut_down(self._ae)

    def _on_c_store(self, event: evt.Event) -> int:
        with self._lock:
            if not self.refused:
                self.refused += 1
                return 0xA700
            path = self._folder / f"{event.request.AffectedSOPInstanceUID}.dcm"  # type: ignore[union-attr]
            path.write_bytes(event.encoded_dataset())
            self.reports.append(_read(path, time.monotonic()))
            return 0x0000


class NodeProcess:
    """`pacs-node serve` in its own process.

    Parameters
    ----------
    config
        File with the settings, which choose a log in JSON.
    log
        File for the log.
    roles
        What it does, in the form of `--roles`.
    """

    def __init__(self, config: Path, log: Path, roles: str = "receive,score,deliver") -> None:
        self._config = config
        self._log = log
        self._roles = roles
        self._popen: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self._popen.pid

    @property
    def exit_code(self) -> int | None:
        """Exit code; ``None`` while it runs."""
        return self._popen.poll()

    def __enter__(self) -> NodeProcess:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(ENVIRONMENT_PREFIX)}
        command = [sys.executable, "-m", "pacs_node", "serve", "--config", str(self._config)]
        command += ["--roles", self._roles]
        with self._log.open("wb") as log:
            self._popen = subprocess.Popen(command, stderr=log, stdin=subprocess.DEVNULL, env=environment)
        return self

    def __exit__(self, *_exception: object) -> None:
        self._popen.terminate()
        self._popen.wait()

    def wait_until_ready(self) -> None:
        """Return when all its processes are at work.

        Raises
        ------
        UserError
            If it ends before that, or takes longer than ten minutes.
        """
        deadline = time.monotonic() + _START_SECONDS
        while not any(event.get("event") == "ready" for event in self._events()):
            if self._popen.poll() is not None or time.monotonic() > deadline:
                raise UserError(f"The node did not start; the reason is in {self._log}.")
            time.sleep(0.1)

    def _events(self) -> Iterator[dict[str, Any]]:
        for line in self._log.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                continue


def free_port() -> int:
    """Return a TCP port on which no program listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def shut_down(ae: AE) -> None:
    """End the server of a peer, after its associations."""
    let_end(ae, _END_SECONDS)
    ae.shutdown()


def _read(path: Path, arrived: float) -> ReturnedReport:
    """Read a report back as any PACS would: from its file."""
    report = dcmread(path)
    percent = dict(pair for group in _groups(report) if (pair := _stated(group)))
    return ReturnedReport(
        path,
        arrived,
        str(report.PatientID),
        str(report.StudyInstanceUID),
        str(report.SOPInstanceUID),
        percent,
    )


def _groups(item: Dataset) -> Iterator[Dataset]:
    """Yield the measurement groups, 125007 DCM, at any depth."""
    for child in item.get("ContentSequence", []):
        if child.ConceptNameCodeSequence[0].CodeValue == "125007":
            yield child
        yield from _groups(child)


def _stated(group: Dataset) -> tuple[str, str] | None:
    """Return the image and the certainty in a group, if any."""
    image = percent = None
    for item in group.ContentSequence:
        name = item.ConceptNameCodeSequence[0].CodeValue
        if name == _CERTAINTY:
            percent = str(item.MeasuredValueSequence[0].NumericValue)
        elif name == _SOURCE:
            image = str(item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID)
    return (image, percent) if image is not None and percent is not None else None
