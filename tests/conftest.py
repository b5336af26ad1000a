"""Shared fixtures; `radiograph` is the one factory of synthetic DICOM objects."""

from __future__ import annotations

import fcntl
import hashlib
import os
import pickle
import shutil
import socket
import socketserver
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if "PYTEST_XDIST_WORKER" in os.environ:  # tests run beside each other: threads would only wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    ExplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
)
from pynetdicom.transport import AssociationServer, AssociationSocket

from db.session import Database
from tests.harness.workers import shared_folder
from tests.helpers.postgres import Server, running_server

if TYPE_CHECKING:
    from pacs_node.demo.samples import Sample

pytest_plugins = ["tests.harness.plugin"]

SOP_CLASSES = {
    "CR": ComputedRadiographyImageStorage,
    "DX": DigitalXRayImageStorageForPresentation,
    "DX_PROCESSING": DigitalXRayImageStorageForProcessing,
    "SC": SecondaryCaptureImageStorage,
}
SHARED = Path(__file__).resolve().parents[2] / "shared"


def uid(*parts: object) -> str:
    """Return the same 2.25 UID for the same parts."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_URL, '/'.join(map(str, parts))).int}"


def code(value: str, scheme: str, meaning: str) -> Dataset:
    """Return a code sequence item (PS3.3 8.8)."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def pixels(rows: int = 256, columns: int = 256, bits: int = 12, seed: int = 0) -> np.ndarray[Any, Any]:
    """Return a smooth, noisy two-lobed image, (rows, columns) uint8 or uint16, within `bits` bits."""
    y, x = np.mgrid[0:rows, 0:columns] / max(rows, columns)
    lungs = sum(np.exp(-((x - c) ** 2) / 0.02 - (y - 0.5) ** 2 / 0.06) for c in (0.3, 0.7))
    noise = np.random.default_rng(seed).normal(0, 0.005, (rows, columns))
    image = np.clip(0.75 - 0.5 * lungs + noise, 0, 1) * (2**bits - 1)
    encoded: np.ndarray[Any, Any] = image.astype("u1" if bits <= 8 else "<u2")
    return encoded


def radiograph(
    kind: str = "DX", *, view: str = "PA", study: str = "1", number: int = 1, bits: int = 12, **tags: Any
) -> FileDataset:
    """Make one projection radiograph as Part 10 data set, Explicit VR Little Endian.

    Parameters
    ----------
    kind
        ``CR``, ``DX``, ``DX_PROCESSING`` or ``SC``.
    view
        View Position (0018,5101); anything but PA and AP gets a lateral Patient Orientation.
    study, number
        Name the study and the instance in it; the same names give the same UIDs.
    **tags
        Attributes to set by keyword; ``None`` removes the attribute.
    """
    sop_class = SOP_CLASSES[kind]
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class, uid(study, number)
    ds.StudyInstanceUID, ds.SeriesInstanceUID = uid(study, "study"), uid(study, "series")
    ds.PatientName, ds.PatientID, ds.IssuerOfPatientID = "Test^Alice", f"PID-{study}", "HOSPITAL-A"
    ds.PatientBirthDate, ds.PatientSex, ds.PatientAge = "20210214", "F", "004Y"
    ds.StudyDate, ds.StudyTime, ds.StudyID = "20250610", "101500", "S1"
    ds.SeriesDate, ds.SeriesTime = "20250610", "101600"
    ds.AcquisitionDate, ds.AcquisitionTime = "20250610", "101730"
    ds.ContentDate, ds.ContentTime = "20250610", "101731"
    ds.AccessionNumber, ds.ReferringPhysicianName = f"ACC-{study}", "Ref^Doctor"
    ds.StudyDescription, ds.TimezoneOffsetFromUTC = "CHEST", "+0900"
    ds.Modality = {"SC": "CR", "CR": "CR"}.get(kind, "DX")
    ds.Manufacturer, ds.ManufacturerModelName, ds.InstitutionName = "ACME X-ray", "RX-1", "Hospital A"
    ds.DeviceSerialNumber, ds.SoftwareVersions = "SN1", "1.0"
    ds.SeriesNumber, ds.InstanceNumber = 1, number
    ds.BodyPartExamined, ds.ViewPosition = "CHEST", view
    frontal = view in ("PA", "AP")
    ds.PatientOrientation = ["L", "F"] if frontal else ["P", "F"]
    image = pixels(bits=bits, seed=number + int(hashlib.sha256(study.encode()).hexdigest()[:4], 16))
    ds.Rows, ds.Columns = image.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = image.itemsize * 8, bits, bits - 1
    ds.PixelRepresentation = 0
    if kind.startswith("DX"):
        _add_dx_attributes(ds, frontal, "FOR PROCESSING" if kind == "DX_PROCESSING" else "FOR PRESENTATION")
    elif kind == "SC":
        ds.ConversionType, ds.ImageType = "DI", ["DERIVED", "SECONDARY"]
    else:
        ds.ImagerPixelSpacing, ds.ImageType, ds.Laterality = [1.39, 1.39], ["ORIGINAL", "PRIMARY"], ""
    _add_request(ds)
    ds.PixelData = image.tobytes()
    ds["PixelData"].VR = "OB" if bits <= 8 else "OW"
    for keyword, value in tags.items():
        if value is None:
            ds.pop(keyword, None)
        else:
            setattr(ds, keyword, value)
    meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    return ds


def _add_dx_attributes(ds: Dataset, frontal: bool, intent: str) -> None:
    ds.ImagerPixelSpacing, ds.PresentationIntentType = [1.39, 1.39], intent
    ds.ImageLaterality, ds.ImageType = "U", ["ORIGINAL", "PRIMARY", ""]
    ds.AnatomicRegionSequence = [code("816094009", "SCT", "Chest")]
    ds.ViewCodeSequence = [
        code("272479007", "SCT", "postero-anterior") if frontal else code("399173006", "SCT", "left lateral")
    ]
    ds.PixelIntensityRelationship, ds.PixelIntensityRelationshipSign = "LOG", 1
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = 0, 1, "US"
    ds.PresentationLUTShape, ds.LossyImageCompression, ds.BurnedInAnnotation = "IDENTITY", "00", "NO"
    ds.WindowCenter, ds.WindowWidth = 2048, 4096
    ds.DetectorType, ds.PositionerType, ds.AcquisitionContextSequence = "DIRECT", "NONE", []


def _add_request(ds: Dataset) -> None:
    request = Dataset()
    request.RequestedProcedureID, request.ScheduledProcedureStepID = "RP77", "SPS77"
    request.RequestedProcedureDescription = "XR Chest"
    request.RequestedProcedureCodeSequence = [code("399208008", "SCT", "Plain chest X-ray")]
    ds.RequestAttributesSequence = [request]
    ds.ProcedureCodeSequence = [code("399208008", "SCT", "Plain chest X-ray")]


def save(ds: Dataset, path: Path) -> Path:
    """Write `ds` as a Part 10 file and return its path."""
    ds.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture(scope="session", autouse=True)
def _pynetdicom_closes_at_once() -> Iterator[None]:
    """Close what pynetdicom leaves to the garbage collector; let servers stop half a second earlier."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AssociationSocket, "_shutdown_socket", _shut_down)
        patch.setattr(
            AssociationServer, "serve_forever", lambda self: socketserver.TCPServer.serve_forever(self, 0.05)
        )
        yield


def _shut_down(connection: AssociationSocket) -> None:
    """Close a connection; pynetdicom does not where the peer has gone, for it cannot shut it down before."""
    if connection.socket is not None:
        with suppress(OSError):
            connection.socket.shutdown(socket.SHUT_RDWR)
        connection.socket.close()


@pytest.fixture
def shared() -> Path:
    """The folder of real images and first weights that developers may have; absent elsewhere."""
    if not SHARED.is_dir():
        pytest.skip("the shared data folder with real images is not here")
    return SHARED


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Let torch compute in one thread: several would wait for each other where other tests run beside."""
    import torch  # most tests need none of it

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def drawn_studies(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """The studies of the demonstration, drawn once for all workers; nobody writes to them."""
    from pacs_node.demo.samples import write_samples  # most tests need none of it

    of_the_run = shared_folder(tmp_path_factory)
    with (of_the_run / "drawn.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        listed = of_the_run / "drawn.pickle"
        if not listed.exists():
            listed.write_bytes(pickle.dumps(write_samples(of_the_run / "drawn")))
        studies: list[Sample] = pickle.loads(listed.read_bytes())
        return studies


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    """A PostgreSQL server, started when the first test asks for it."""
    with running_server() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_template(postgres_server: Server) -> str:
    """The name of an upgraded, empty database that others are copied from."""
    name = postgres_server.create()
    _upgrade(postgres_server.url(name))
    return name


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of an upgraded, empty database that others are copied from."""
    file = tmp_path_factory.mktemp("template") / "results.sqlite"
    _upgrade(f"sqlite:///{file}")
    return file


def _upgrade(url: str) -> None:
    database = Database(url)
    database.upgrade()
    database.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def backend(request: pytest.FixtureRequest) -> str:
    """The engine under the results database: each test that asks for a database runs on both."""
    return str(request.param)


@pytest.fixture
def empty_url(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database without tables, of the test's own."""
    if backend == "sqlite":
        yield f"sqlite:///{tmp_path / 'empty.sqlite'}"
    else:
        yield from _postgres_url(request.getfixturevalue("postgres_server"))


@pytest.fixture
def database_url(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an upgraded database without rows, of the test's own."""
    if backend == "sqlite":
        file = tmp_path / "results.sqlite"
        shutil.copyfile(request.getfixturevalue("sqlite_template"), file)
        yield f"sqlite:///{file}"
    else:
        template = request.getfixturevalue("postgres_template")
        yield from _postgres_url(request.getfixturevalue("postgres_server"), template)


def _postgres_url(server: Server, template: str | None = None) -> Iterator[str]:
    name = server.create(template)
    yield server.url(name)
    server.drop(name)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """An upgraded, empty results database of the test's own."""
    database = Database(database_url)
    yield database
    database.close()
