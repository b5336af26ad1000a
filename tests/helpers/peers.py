"""Programs of others that tests talk to: Orthanc as the PACS, DCMTK as the modality."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pacs_node.demo.peers import free_port

_START_SECONDS = 240
_STARTS = 3


def program(name: str) -> str:
    """Return the path of a program; its absence skips a developer's test and fails CI's."""
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if path is None:
        why = f"{name} is not installed here (Debian: apt install dcmtk orthanc dicom3tools prometheus)."
        if os.environ.get("CI") == "true":
            pytest.fail(why)
        pytest.skip(why)
    return path


def storescu(*files: Path, port: int, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Send files to the node with DCMTK."""
    command = [program("storescu"), "-v", *options, "-aec", "PACS_NODE", "127.0.0.1", str(port)]
    return subprocess.run([*command, *map(str, files)], capture_output=True, text=True, check=False)


class Orthanc:
    """A running Orthanc, asked through its REST API."""

    ae_title = "ORTHANC"

    def __init__(self, port: int, http_port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{http_port}"

    def get(self, path: str) -> bytes:
        """Return what a resource of the REST API holds."""
        with urllib.request.urlopen(self.url + path, timeout=120) as answer:
            content: bytes = answer.read()
        return content

    def post(self, path: str, content: Any) -> Any:
        """Post JSON to a resource of the REST API; return what it answers."""
        request = urllib.request.Request(self.url + path, json.dumps(content).encode(), method="POST")
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.loads(answer.read())

    def post_file(self, file: Path) -> None:
        """Put a DICOM file into it."""
        request = urllib.request.Request(f"{self.url}/instances", file.read_bytes(), method="POST")
        urllib.request.urlopen(request, timeout=120).close()

    def delete(self, path: str) -> None:
        """Delete a resource of the REST API."""
        request = urllib.request.Request(self.url + path, method="DELETE")
        urllib.request.urlopen(request, timeout=120).close()

    def json(self, path: str) -> Any:
        """Return what a resource of the REST API holds, decoded."""
        return json.loads(self.get(path))

    def instances(self) -> list[str]:
        """Return Orthanc's names of all the instances it holds."""
        names: list[str] = json.loads(self.get("/instances"))
        return names

    def files(self) -> list[bytes]:
        """Return the files of all instances."""
        return [self.get(f"/instances/{name}/file") for name in self.instances()]


@contextmanager
def orthanc(
    folder: Path, modalities: Mapping[str, int] | None = None, port: int | None = None, **keys: Any
) -> Iterator[Orthanc]:
    """Return a context in which Orthanc runs, with its storage under `folder`.

    Parameters
    ----------
    modalities
        AE titles that Orthanc knows, and their ports on this machine: where it sends, and answers to requests
        for storage commitment.
    keys
        Of its configuration, beside these.
    """
    folder.mkdir(exist_ok=True)
    for _ in range(_STARTS):  # another program may take a free port first
        peer, process = _start(folder, modalities or {}, port or free_port(), free_port(), keys)
        try:
            if _is_there(peer, process):
                yield peer
                return
        finally:
            process.terminate()
            process.wait()
    raise AssertionError(f"Orthanc did not start: {(folder / 'orthanc.log').read_text()[-500:]}")


def _start(
    folder: Path, modalities: Mapping[str, int], port: int, http_port: int, keys: Mapping[str, Any]
) -> tuple[Orthanc, subprocess.Popen[bytes]]:
    config: dict[str, Any] = {
        "Name": "PACS",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "DicomAet": Orthanc.ae_title,
        "DicomPort": port,
        "DicomCheckCalledAet": True,
        "HttpPort": http_port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "OverwriteInstances": False,
        "DicomModalities": {title: [title, "127.0.0.1", at] for title, at in modalities.items()},
        **keys,
    }
    file = folder / "orthanc.json"
    file.write_text(json.dumps(config))
    with (folder / "orthanc.log").open("wb") as log:
        process = subprocess.Popen([program("Orthanc"), str(file)], stdout=log, stderr=log)
    return Orthanc(port, http_port), process


def _is_there(peer: Orthanc, process: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            peer.get("/system")
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.05)
        else:
            return True
    return False
