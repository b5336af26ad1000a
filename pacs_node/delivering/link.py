"""The DICOM side of deliveries: Storage SCU for one destination (PS3.4 Annex B).

The bytes of a report, and of what is made beside it, are sent as they are stored. A destination that does not
accept the preferred report class is offered the older ones. One that accepts only Implicit VR Little Endian
gets objects in it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, SecondaryCaptureImageStorage
from pynetdicom.association import Association

from pacs_node.commitment.messages import COMMITMENT
from pacs_node.config import DeliverSettings, Destination
from pacs_node.config_access import TlsSettings
from pacs_node.errors import (
    DestinationBusy,
    DestinationDown,
    DestinationRefused,
    NotAssociated,
    Retryable,
    TakesNothing,
    TlsUnusable,
)
from pacs_node.network.association import application_entity, associate, store
from pacs_node.reporting.encapsulated_pdf import ENCAPSULATED_PDF, as_stored
from pacs_node.reporting.encoding import implicit
from pacs_node.reporting.report import REPORT_CLASSES, EncodedReport, as_class

_DUPLICATE_SOP_INSTANCE = 0x0111  # PS3.7 C.5.7: the destination already has the object
_CLASS_NOT_SUPPORTED = 0x0122
_SECONDARY_CAPTURE = str(SecondaryCaptureImageStorage)  # its own module would load what draws

RESULT_CLASSES = {"report": REPORT_CLASSES, "pdf": (ENCAPSULATED_PDF,), "heatmap": (_SECONDARY_CAPTURE,)}
"""The SOP classes of each result class, the preferred one first."""

_LACKING = {
    "report": "accepts no class of structured report; enable one there.",
    "pdf": "accepts no Encapsulated PDF; enable it there.",
    "heatmap": "accepts no Secondary Capture Image; enable it there.",
}


@dataclass(frozen=True)
class DeliveryResult:
    """What a destination accepted: the object as it was sent, and the DIMSE status of the answer. `commits`
    tells whether the destination offers storage commitment, so that the node must ask for it.
    """

    sop_class_uid: str
    sop_instance_uid: str
    status: int
    commits: bool = False


class Link:
    """An open association with a destination."""

    def __init__(self, association: Association, name: str) -> None:
        self._association = association
        self._name = name

    @property
    def is_open(self) -> bool:
        """Whether the association is still established."""
        return bool(self._association.is_established)

    def send(self, content: bytes, result: str = "report") -> DeliveryResult:
        """Send one object; a report in the first class that the destination accepts.

        Parameters
        ----------
        content
            The whole file, as it was made.
        result
            Its result class, as `[[destinations]] send` names it.

        Raises
        ------
        DestinationDown
            If the association breaks or no answer comes.
        DestinationBusy
            If the answer is a failure that may pass.
        Retryable
            If this machine cannot hand over the object, for example without free disk space.
        DestinationRefused
            If the destination accepts no class of it, or says that the object is wrong.
        """
        for sop_class in RESULT_CLASSES[result]:
            syntax = self._accepted_syntax(sop_class)
            if syntax is None:
                continue
            made = as_class(content, sop_class) if result == "report" else as_stored(content)
            status = self._store(made, syntax)
            if status != _CLASS_NOT_SUPPORTED:
                self._judge(status)
                return DeliveryResult(
                    made.sop_class_uid, made.sop_instance_uid, status, self._offers_commitment
                )
        raise DestinationRefused(f"{self._name} {_LACKING[result]}")

    @property
    def _offers_commitment(self) -> bool:
        return any(cx.abstract_syntax == COMMITMENT for cx in self._association.accepted_contexts)

    def _accepted_syntax(self, sop_class: str) -> str | None:
        accepted = {
            str(context.transfer_syntax[0])
            for context in self._association.accepted_contexts
            if context.abstract_syntax == sop_class
        }
        return next((s for s in (ExplicitVRLittleEndian, ImplicitVRLittleEndian) if s in accepted), None)

    def _store(self, report: EncodedReport, syntax: str) -> int:
        content = report.content if syntax == ExplicitVRLittleEndian else implicit(report.content)
        try:
            with tempfile.NamedTemporaryFile(suffix=".dcm") as file:
                file.write(content)
                file.flush()
                answer = store(self._association, Path(file.name))
        except OSError as error:
            raise Retryable(f"The temporary folder cannot be used: {error.strerror}.") from error
        except NotAssociated as error:
            raise DestinationDown(f"{self._name} {error}.") from error
        if "Status" not in answer:
            raise DestinationDown(f"{self._name} broke off, or gave no answer to C-STORE in time.")
        return int(answer.Status)

    def _judge(self, status: int) -> None:
        """Raise unless the status means that the destination now has the report; a warning means that too."""
        if status in (0x0000, 0x0001, _DUPLICATE_SOP_INSTANCE) or 0xB000 <= status <= 0xBFFF:
            return
        said = f"{self._name} answered C-STORE with status 0x{status:04X}"
        if 0xA900 <= status <= 0xA9FF or 0xC000 <= status <= 0xCFFF:
            raise DestinationRefused(f"{said}: it says that the report is wrong; see its log.", status)
        raise DestinationBusy(f"{said}.", status)


@contextmanager
def open_link(
    destination: Destination, calling_ae_title: str, settings: DeliverSettings, tls: TlsSettings | None = None
) -> Iterator[Link]:
    """Open an association for what a destination gets, and release it at the end.

    Raises
    ------
    DestinationDown
        If there is no connection, or the association is rejected.
    DestinationRefused
        If the association is accepted, but no class of what it is to get.
    """
    association = _associate(destination, calling_ae_title, settings, tls)
    try:
        yield Link(association, destination.name)
    finally:
        if association.is_established:
            association.release()


def _associate(
    destination: Destination, calling_ae_title: str, settings: DeliverSettings, tls: TlsSettings | None
) -> Association:
    ae = application_entity(calling_ae_title)
    ae.connection_timeout = ae.acse_timeout = settings.connect_seconds
    ae.dimse_timeout = ae.network_timeout = settings.answer_seconds
    for sop_class in (one for result in destination.send for one in RESULT_CLASSES[result]):
        for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
            ae.add_requested_context(sop_class, syntax)
    if destination.commitment == "auto":
        ae.add_requested_context(COMMITMENT)
    where = f"{destination.name} ({destination.ae_title}@{destination.host}:{destination.port})"
    try:
        return associate(ae, destination.host, destination.port, destination.ae_title, tls=tls)
    except TakesNothing as error:
        raise DestinationRefused(
            f"{where} {' It '.join(_LACKING[one] for one in destination.send)}"
        ) from error
    except NotAssociated as error:
        raise DestinationDown(f"{where} {error}.") from error
    except TlsUnusable as error:
        raise DestinationDown(f"{where} is not connected to. {error}") from error
