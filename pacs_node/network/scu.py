"""The DICOM side of the command line: C-ECHO and C-STORE to a peer, for trying things out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pynetdicom.association import Association
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]  # made at import

from pacs_node.dicom.part10 import read_file_meta
from pacs_node.errors import NotAssociated, PeerError, TakesNothing, UnreadableHeader, UserError
from pacs_node.network.association import application_entity, associate, store
from pacs_node.network.peer import Peer

_MOST_CONTEXTS = 128  # PS3.8 9.3.2.2: odd numbers from 1 to 255
_TIMEOUT = 30.0  # seconds


@dataclass(frozen=True)
class SendResult:
    """What became of one file: the DIMSE status, or none where it was not sent, and why."""

    path: Path
    status: int | None
    comment: str

    @property
    def is_stored(self) -> bool:
        """Whether the peer has the object: Success, or a warning."""
        return self.status is not None and (self.status == 0 or 0xB000 <= self.status <= 0xBFFF)


@dataclass(frozen=True)
class _File:
    path: Path
    context: tuple[str, str]  # SOP Class UID, Transfer Syntax UID


def echo(peer: Peer, calling_ae_title: str) -> None:
    """Ask a peer whether it is there.

    Raises
    ------
    PeerError
        When it is not, or does not want to be asked.
    """
    with_contexts = [(str(Verification), "1.2.840.10008.1.2")]
    association = _associate(peer, calling_ae_title, with_contexts)
    answer = association.send_c_echo()
    association.release()
    if "Status" not in answer or answer.Status != 0:
        raise PeerError(f"{peer} did not answer C-ECHO with Success; see its log.")


def send(paths: Iterable[Path], peer: Peer, calling_ae_title: str) -> Iterator[SendResult]:
    """Send Part 10 files as they are; yield what became of each.

    Raises
    ------
    PeerError
        When there is no association with the peer.
    """
    batch: list[_File] = []
    contexts: set[tuple[str, str]] = set()
    for path in paths:
        file = _inspected(path)
        if isinstance(file, SendResult):
            yield file
            continue
        if file.context not in contexts and len(contexts) == _MOST_CONTEXTS:
            yield from _send_batch(batch, peer, calling_ae_title)
            batch, contexts = [], set()
        batch.append(file)
        contexts.add(file.context)
    if batch:
        yield from _send_batch(batch, peer, calling_ae_title)


def files_in(paths: Sequence[Path]) -> list[Path]:
    """Return files, and those in folders with all below them, in the order of their names.

    Raises
    ------
    UserError
        When a path is not there.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(path.rglob("*"))
            found += [
                p for p in inside if p.is_file() and not p.name.startswith(".") and p.name != "DICOMDIR"
            ]
        elif path.is_file():
            found.append(path)
        else:
            raise UserError(f"There is no file {path}; check the path.")
    return found


def _inspected(path: Path) -> _File | SendResult:
    try:
        meta = read_file_meta(path)
        return _File(path, (meta.sop_class_uid, meta.transfer_syntax_uid))
    except UnreadableHeader:
        return SendResult(path, None, "is no DICOM file (PS3.10)")
    except OSError as error:
        return SendResult(path, None, f"cannot be read: {error.strerror}")


def _send_batch(files: Sequence[_File], peer: Peer, calling_ae_title: str) -> Iterator[SendResult]:
    association = _associate(peer, calling_ae_title, sorted({file.context for file in files}))
    accepted = {(str(c.abstract_syntax), str(c.transfer_syntax[0])) for c in association.accepted_contexts}
    for file in files:
        if file.context not in accepted:
            yield SendResult(file.path, None, "the peer does not take its SOP class in this transfer syntax")
        else:
            yield _send_one(file, association)
    if association.is_established:
        association.release()


def _send_one(file: _File, association: Association) -> SendResult:
    try:
        answer = store(association, file.path)
    except NotAssociated as error:
        return SendResult(file.path, None, f"the peer {error}")
    return SendResult(file.path, answer.get("Status"), str(answer.get("ErrorComment", "")) or _said(answer))


def _said(answer: Any) -> str:
    return "" if "Status" in answer else "the peer gave no answer"


def _associate(peer: Peer, calling_ae_title: str, contexts: Sequence[tuple[str, str]]) -> Association:
    ae = application_entity(calling_ae_title)
    ae.connection_timeout = ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = _TIMEOUT
    for sop_class, syntax in contexts:
        ae.add_requested_context(sop_class, syntax)
    try:
        return associate(ae, peer.host, peer.port, peer.ae_title, tls=peer.tls)
    except TakesNothing as error:
        raise PeerError(
            f"{peer} takes none of the SOP classes and transfer syntaxes of these files."
        ) from error
    except NotAssociated as error:
        raise PeerError(f"{peer} {error}.") from error
