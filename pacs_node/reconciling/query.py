"""The DICOM side of queries to a PACS: Query/Retrieve SCU, Study Root, by C-FIND, C-MOVE, C-GET (PS3.4 Annex
C).

Queries are hierarchical, which every PACS answers: studies, then the series of one, then the images of one.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from functools import partial

from pydicom.dataset import Dataset
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)
from pynetdicom import build_role
from pynetdicom.association import Association

from classifier.config import PROJECTION_RADIOGRAPHS
from classifier.decoding.quiet import silence_warnings
from classifier.decoding.tags import values
from pacs_node.dicom.header import date_text, readable, text
from pacs_node.errors import CutShort, NotAssociated, PeerError, TakesNothing
from pacs_node.network.association import application_entity, associate
from pacs_node.network.dimse import Services
from pacs_node.network.peer import Peer
from pacs_node.network.pynetdicom_internals import log_no_identifiers

MOST_ANSWERS = 100_000
"""The largest number of answers accepted for one query; only a faulty PACS sends more."""

_TEXTS = (0x00080050, 0x00081030, 0x0008103E, 0x00100010, 0x00100020)  # VRs SH, LO and PN, as requested
_FIND, _MOVE, _GET = (f"1.2.840.10008.5.1.4.1.2.2.{number}" for number in (1, 2, 3))  # PS3.4 C.6.2.3

_ASK_SECONDS = 60.0  # for each answer to C-FIND
_FETCH_SECONDS = 600.0  # between answers to C-MOVE and C-GET: some archives load from tape without telling
_PENDING = (0xFF00, 0xFF01)  # PS3.4 C.4.1.1.4; the second: optional keys were ignored
_CUT_SHORT = (0xFE00, 0xA700)  # how Orthanc and others say that there are more matches than they return
_UNKNOWN_DESTINATION = 0xA801  # PS3.4 C.4.2.1.5

_UID = re.compile(r"[0-9.]{1,64}")

# One presentation context for each, so that the PACS can send an object as stored. With the 8 SOP classes of
# radiographs, these take 120 of the 128 contexts that an association can have.
_SYNTAXES = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    ExplicitVRBigEndian,
    RLELossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    JPEG2000Lossless,
    JPEG2000,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    HTJ2K,
)


@dataclass(frozen=True, kw_only=True)
class ListedStudy:
    """One study as the PACS lists it; a text is empty if the PACS does not return it."""

    study_instance_uid: str
    study_date: str
    patient_id: str
    patient_name: str
    accession_number: str
    modalities: tuple[str, ...]
    description: str


@dataclass(frozen=True, kw_only=True)
class ListedSeries:
    """One series; a text is empty if the PACS does not return it."""

    series_instance_uid: str
    modality: str
    body_part: str
    description: str


@dataclass(frozen=True, kw_only=True)
class ListedImage:
    """One SOP instance; its SOP Class UID is empty if the PACS does not return it."""

    sop_instance_uid: str
    sop_class_uid: str


@dataclass(frozen=True, kw_only=True)
class RetrieveKeys:
    """Images of one series, to fetch with one request."""

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uids: Sequence[str]


class Finder:
    """An open association for C-FIND.

    Attributes
    ----------
    unreadable
        Whether an answer was left out because it did not parse or had no valid UID.
    """

    def __init__(self, association: Association, peer: Peer, calling_ae_title: str) -> None:
        self.unreadable = False
        self._association = association
        self._peer = peer
        self._calling_ae_title = calling_ae_title

    @property
    def is_open(self) -> bool:
        """Whether the association is still established."""
        return bool(self._association.is_established)

    def studies(self, first: date, last: date, modality: str) -> list[ListedStudy]:
        """Return the studies from the first to the last of these days.

        Parameters
        ----------
        modality
            Value of Modalities in Study, an optional key that not every PACS matches; empty for any.

        Raises
        ------
        CutShort
            If there are more than the PACS returns; ask for fewer days.
        PeerError
            If the PACS answers with another failure, or not at all.
        """
        keys = {
            "StudyDate": f"{first:%Y%m%d}-{last:%Y%m%d}",
            "ModalitiesInStudy": modality,
            **dict.fromkeys(("AccessionNumber", "PatientName", "PatientID", "StudyDescription"), ""),
        }
        return [
            ListedStudy(
                study_instance_uid=uid,
                study_date=date_text(text(answer, "StudyDate", 64)),
                patient_id=text(answer, "PatientID", 64),
                patient_name=text(answer, "PatientName", 324),
                accession_number=text(answer, "AccessionNumber", 64),
                modalities=tuple(filter(None, text(answer, "ModalitiesInStudy", 1024).split("\\"))),
                description=text(answer, "StudyDescription", 64),
            )
            for uid, answer in self._find("STUDY", {}, "StudyInstanceUID", keys)
        ]

    def series(self, study_instance_uid: str) -> list[ListedSeries]:
        """Return the series of a study; raises like `studies`."""
        keys = dict.fromkeys(("Modality", "BodyPartExamined", "SeriesDescription"), "")
        above = {"StudyInstanceUID": study_instance_uid}
        return [
            ListedSeries(
                series_instance_uid=uid,
                modality=text(answer, "Modality", 16),
                body_part=text(answer, "BodyPartExamined", 64),
                description=text(answer, "SeriesDescription", 64),
            )
            for uid, answer in self._find("SERIES", above, "SeriesInstanceUID", keys)
        ]

    def images(
        self, study_instance_uid: str, series_instance_uid: str, only: Sequence[str] = ()
    ) -> list[ListedImage]:
        """Return all images of a series, or those with these SOP Instance UIDs; raises like `studies`."""
        keys: dict[str, str | list[str]] = {"SOPInstanceUID": list(only), "SOPClassUID": ""}
        above = {"StudyInstanceUID": study_instance_uid, "SeriesInstanceUID": series_instance_uid}
        return [
            ListedImage(sop_instance_uid=uid, sop_class_uid=_uid(answer, "SOPClassUID"))
            for uid, answer in self._find("IMAGE", above, "SOPInstanceUID", keys)
            if not only or uid in only  # for some PACS anything matches that key
        ]

    def _find(
        self, level: str, above: Mapping[str, str], unique: str, keys: Mapping[str, str | list[str]]
    ) -> Iterator[tuple[str, Dataset]]:
        """Yield the answers with their unique key."""
        request = _identifier(level, {**above, unique: "", **keys})
        for identifier in self._answers(partial(self._association.send_c_find, request, _FIND)):
            uid = "" if identifier is None else _uid(identifier, unique)
            if identifier is None or not uid:
                self.unreadable = True
            else:
                yield uid, readable(identifier, _TEXTS)

    def _answers(self, ask: _Ask) -> Iterator[Dataset | None]:
        number = 0
        for status, identifier in _responses(ask, self._peer, "C-FIND", self._calling_ae_title):
            if status.Status in _PENDING:
                number += 1
                if number > MOST_ANSWERS:
                    raise PeerError(f"{self._peer} gives over {MOST_ANSWERS} answers; ask for fewer days.")
                yield identifier
            elif status.Status in _CUT_SHORT:
                raise CutShort(
                    f"{self._peer} ended its answers to C-FIND early ({_said(status)}); raise its limit."
                )
            elif status.Status != 0:
                raise PeerError(f"{self._peer} answered C-FIND with {_said(status)}; see its log.")


_Ask = Callable[[], Iterator[tuple[Dataset, Dataset | None]]]


@contextmanager
def open_finder(peer: Peer, calling_ae_title: str) -> Iterator[Finder]:
    """Open an association for C-FIND, and release it at the end.

    Raises
    ------
    PeerError
        If there is no connection, the association is rejected, or the peer does not offer C-FIND.
    """
    log_no_identifiers()
    refusal = f"{peer} does not offer C-FIND (Study Root); enable it there, or ask the PACS that does."
    with _associated(peer, calling_ae_title, _FIND, refusal) as association:
        yield Finder(association, peer, calling_ae_title)


def move(peer: Peer, calling_ae_title: str, to: str, wanted: Sequence[RetrieveKeys]) -> Iterator[str]:
    """Let a PACS send images to an AE title that it knows; yield the error of each request, or "".

    Raises
    ------
    PeerError
        If the PACS does not offer C-MOVE, does not know `to`, or breaks off.
    """
    refusal = f"{peer} does not offer C-MOVE (Study Root); enable it there, or use --by get."
    with _associated(peer, calling_ae_title, _MOVE, refusal) as association:
        for one in wanted:
            ask = partial(association.send_c_move, _images(one), to, _MOVE)
            status = _final(ask, peer, "C-MOVE", calling_ae_title)
            if status.Status == _UNKNOWN_DESTINATION:
                raise PeerError(f"{peer} does not know the AE title {to}; add it there, or use --by get.")
            yield _trouble(status, f"{peer} answered C-MOVE with", _check_destination(peer, to))


def get(
    peer: Peer, calling_ae_title: str, services: Services, wanted: Sequence[RetrieveKeys]
) -> Iterator[str]:
    """Let a PACS send images over the same association; yield the error of each request, or "".

    Parameters
    ----------
    services
        Services, with the storage handlers for objects that arrive by C-STORE.

    Raises
    ------
    PeerError
        If the PACS does not offer C-GET, or breaks off.
    """
    refusal = f"{peer} does not offer C-GET (Study Root); enable it there, or use --by move."
    with _associated(peer, calling_ae_title, _GET, refusal, services) as association:
        if not any(context.abstract_syntax == _GET for context in association.accepted_contexts):
            raise PeerError(refusal)
        for one in wanted:
            ask = partial(association.send_c_get, _images(one), _GET)
            status = _final(ask, peer, "C-GET", calling_ae_title)
            yield _trouble(status, f"{peer} answered C-GET with", "see its log.")


@contextmanager
def _associated(
    peer: Peer, calling_ae_title: str, model: str, refusal: str, services: Services | None = None
) -> Iterator[Association]:
    """Open an association for an information model; with services, radiographs may arrive over it."""
    ae = application_entity(calling_ae_title)
    ae.connection_timeout = ae.acse_timeout = _ASK_SECONDS
    ae.dimse_timeout = ae.network_timeout = _ASK_SECONDS if model == _FIND else _FETCH_SECONDS
    ae.add_requested_context(model, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
    classes = sorted(PROJECTION_RADIOGRAPHS) if services else []
    for sop_class, syntax in itertools.product(classes, _SYNTAXES):
        ae.add_requested_context(sop_class, syntax)
    roles = [build_role(sop_class, scp_role=True) for sop_class in classes]
    try:
        association = associate(
            ae, peer.host, peer.port, peer.ae_title, roles=roles, services=services, tls=peer.tls
        )
    except TakesNothing as error:
        raise PeerError(refusal) from error
    except NotAssociated as error:
        raise PeerError(f"{peer} {error}.") from error
    try:
        yield association
    except BaseException:
        association.abort()  # in the middle of an answer it cannot be released
        raise
    if association.is_established:
        association.release()


def _responses(
    ask: _Ask, peer: Peer, what: str, calling_ae_title: str
) -> Iterator[tuple[Dataset, Dataset | None]]:
    try:
        responses = ask()
    except RuntimeError as error:  # pynetdicom's
        raise PeerError(f"{peer} ended the association.") from error
    while True:
        silence_warnings()
        answer = next(responses, None)
        if answer is None:
            return
        if "Status" not in answer[0]:
            raise PeerError(
                f"{peer} broke off, or gave no answer to {what} in time; see its log, and whether it lets "
                f"{calling_ae_title} ask."
            )
        yield answer


def _final(ask: _Ask, peer: Peer, what: str, calling_ae_title: str) -> Dataset:
    """Return the last answer, which has the final status."""
    status = Dataset()
    for status, _ in _responses(ask, peer, what, calling_ae_title):  # noqa: B007
        pass
    return status


def _trouble(status: Dataset, who: str, advice: str) -> str:
    return "" if status.Status == 0 else f"{who} {_said(status)}; {advice}"


def _check_destination(peer: Peer, to: str) -> str:
    return (
        f"see that {peer.ae_title} knows the AE title {to}, its host and port, and that `pacs-node serve` "
        "runs there; or use --by get."
    )


def _said(status: Dataset) -> str:
    comment = text(status, "ErrorComment", 64)
    return f"status 0x{status.Status:04X}" + (f", {comment}" if comment else "")


def _images(one: RetrieveKeys) -> Dataset:
    keys: dict[str, str | list[str]] = {
        "StudyInstanceUID": one.study_instance_uid,
        "SeriesInstanceUID": one.series_instance_uid,
        "SOPInstanceUID": list(one.sop_instance_uids),
    }
    return _identifier("IMAGE", keys)


def _identifier(level: str, keys: Mapping[str, str | list[str]]) -> Dataset:
    request = Dataset()
    request.QueryRetrieveLevel = level
    silence_warnings()  # a UID of a PACS may break PS3.5 9.1; the query keeps it
    for keyword, value in keys.items():
        setattr(request, keyword, value)
    return request


def _uid(identifier: Dataset, keyword: str) -> str:
    """Return a UID without padding, even if it is padded wrongly; empty if it is not valid."""
    silence_warnings()
    found = values(identifier, keyword)
    uid = found[0].strip("\0 ") if len(found) == 1 and isinstance(found[0], str) else ""
    return uid if _UID.fullmatch(uid) else ""
