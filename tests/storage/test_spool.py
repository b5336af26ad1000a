"""The spool: what is kept survives a loss of power, under a name that only its content decides."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGBaseline8Bit

from pacs_node.errors import SpoolUnusable
from pacs_node.storage.arriving import digest
from pacs_node.storage.spool import Spool
from tests.conftest import radiograph, save


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    made = Spool(tmp_path / "spool")
    made.prepare()
    return made


def arrive(spool: Spool, name: str = "arriving.dcm", **tags: Any) -> Path:
    """Write an object where the receiver would."""
    return save(radiograph(**tags), spool.incoming / name)


def files_in(folder: Path) -> list[Path]:
    """Return the files below a folder, but not the one that says that it is a spool."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".pacs-node")


# Keeping


def test_a_kept_file_lies_under_its_digest_and_no_longer_in_incoming(spool: Spool) -> None:
    received = arrive(spool)
    content = received.read_bytes()
    name = digest(received, ExplicitVRLittleEndian)
    kept = spool.keep(received, name)
    assert kept == spool.path(name) == spool.objects / name[:2] / f"{name}.dcm"
    assert kept.read_bytes() == content
    assert files_in(spool.root) == [kept]
    assert list(spool.stored()) == [name]


def test_the_same_content_kept_twice_is_one_file(spool: Spool) -> None:
    for name in ("first.dcm", "second.dcm"):
        received = arrive(spool, name)
        kept = spool.keep(received, digest(received, ExplicitVRLittleEndian))
    assert files_in(spool.root) == [kept]
    assert dcmread(kept).PatientID == "PID-1"


def test_other_content_never_replaces_a_kept_file(spool: Spool) -> None:
    for number in range(1, 6):
        received = arrive(spool, PatientComments=str(number))
        spool.keep(received, digest(received, ExplicitVRLittleEndian))
    comments = {str(dcmread(spool.path(name)).PatientComments) for name in spool.stored()}
    assert comments == {"1", "2", "3", "4", "5"}


def test_a_file_is_on_the_disk_before_it_gets_its_name_and_its_name_before_it_counts(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    received = arrive(spool)
    name = digest(received, ExplicitVRLittleEndian)
    kept, inode = spool.path(name), received.stat().st_ino
    steps: list[str] = []
    names = {inode: "file", spool.objects.stat().st_ino: "objects"}
    fsync, replace = os.fsync, Path.replace

    def _fsync(descriptor: int) -> None:
        status = os.fstat(descriptor)
        folder = "new folder" if stat.S_ISDIR(status.st_mode) else "other file"
        steps.append(f"fsync {names.get(status.st_ino, folder)}")
        fsync(descriptor)

    def _replace(self: Path, target: Path) -> Path:
        steps.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", _fsync)
    monkeypatch.setattr(Path, "replace", _replace)
    spool.keep(received, name)
    assert kept.stat().st_ino == inode
    assert steps == ["fsync file", "rename", "fsync new folder"]
    again = arrive(spool)
    names[again.stat().st_ino], names[kept.parent.stat().st_ino] = "file", "its folder"
    steps.clear()
    spool.keep(again, name)
    assert steps == ["fsync file", "rename", "fsync its folder"]


def test_a_disk_that_does_not_take_the_file_leaves_nothing_under_its_name(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    received = arrive(spool)
    name = digest(received, ExplicitVRLittleEndian)

    def _full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", _full)
    with pytest.raises(OSError, match="No space left"):
        spool.keep(received, name)
    assert list(spool.stored()) == []


# Arriving


def test_what_is_written_while_an_object_arrives_is_the_file(spool: Spool) -> None:
    arriving = spool.arriving()
    for part in (b"one", b"two"):
        arriving.write(part)
    arriving.close()
    assert arriving.error is None
    assert (arriving.path.parent, arriving.path.read_bytes()) == (spool.incoming, b"onetwo")


def test_what_is_discarded_is_gone_unless_it_was_kept(spool: Spool) -> None:
    dropped, stays = spool.arriving(), spool.arriving()
    spool.keep(stays.path, "ab" * 32)
    for arriving in (dropped, stays, dropped):
        arriving.discard()
    assert files_in(spool.root) == [spool.path("ab" * 32)]


def test_an_error_while_an_object_arrives_waits_to_be_asked_for(spool: Spool) -> None:
    spool.incoming.rmdir()
    arriving = spool.arriving()
    first = arriving.error
    assert isinstance(first, FileNotFoundError)
    spool.prepare()
    arriving.write(b"too late")
    arriving.close()
    assert arriving.error is first
    assert files_in(spool.root) == []


# The name


def test_the_name_ignores_who_sent_the_object(tmp_path: Path) -> None:
    ds = radiograph()
    first = digest(save(ds, tmp_path / "first.dcm"), ExplicitVRLittleEndian)
    ds.file_meta.ImplementationVersionName = "OTHER_SENDER_1"
    ds.file_meta.SourceApplicationEntityTitle = "MODALITY"
    ds.preamble = b"II*\0" + b"\1" * 124
    assert digest(save(ds, tmp_path / "second.dcm"), ExplicitVRLittleEndian) == first


def test_the_name_tells_transfer_syntaxes_apart(tmp_path: Path) -> None:
    path = save(radiograph(), tmp_path / "image.dcm")
    syntaxes = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGBaseline8Bit)
    assert len({digest(path, syntax) for syntax in syntaxes}) == 3


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content[:-1],
        lambda content: content + b"\0",
        lambda content: content[:-1] + b"\1",
        lambda content: content.replace(b"PID-1", b"PID-2"),
    ],
    ids=["truncated", "longer", "one pixel", "one letter"],
)
def test_the_name_tells_data_sets_apart(change: Callable[[bytes], bytes], tmp_path: Path) -> None:
    original = save(radiograph(), tmp_path / "original.dcm")
    changed = tmp_path / "changed.dcm"
    changed.write_bytes(change(original.read_bytes()))
    assert digest(original, ExplicitVRLittleEndian) != digest(changed, ExplicitVRLittleEndian)


# The folder


@pytest.mark.parametrize("below", ["file", "file/spool"])
def test_a_spool_that_cannot_be_written_is_refused_with_a_sentence(below: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")  # in the way, for root too
    root = tmp_path / below
    with pytest.raises(SpoolUnusable) as refused:
        Spool(root).prepare()
    assert str(refused.value) == (
        f"Cannot write the spool {root}: Not a directory; correct [spool] path or its rights."
    )


def test_preparing_makes_the_folders_and_can_be_repeated(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "srv" / "pacs" / "spool")
    for _ in range(2):
        spool.prepare()
    assert spool.incoming.is_dir()
    assert spool.objects.is_dir()
    assert files_in(spool.root) == []  # the probe is gone
    assert spool.free_bytes() > 0


def test_what_a_crash_left_half_received_is_found_and_nothing_else(spool: Spool) -> None:
    received = arrive(spool)
    spool.keep(received, digest(received, ExplicitVRLittleEndian))
    other_host = spool.incoming.parent / "other-host" / "arriving.dcm"
    other_host.parent.mkdir()
    other_host.write_bytes(b"half")
    half = [spool.incoming / f"{number}.dcm" for number in range(3)]
    for path in half:
        path.write_bytes(b"half")
    assert sorted(spool.leftovers()) == half


def test_a_folder_that_is_no_spool_does_not_become_one_when_objects_are_known(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "mount")
    with pytest.raises(SpoolUnusable, match="is its disk mounted"):
        spool.prepare(may_be_new=False)
    before = spool.is_there
    spool.prepare()
    assert (before, spool.is_there) == (False, True)
    Spool(tmp_path / "mount").prepare(may_be_new=False)


def test_all_folders_of_objects_are_there_and_flushed_before_anything_is_received(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool, flushed, fsync = Spool(tmp_path / "spool"), [], os.fsync

    def _fsync(descriptor: int) -> None:
        flushed.append((os.fstat(descriptor).st_ino, len(list(tmp_path.glob("spool/objects/??")))))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", _fsync)
    spool.prepare()
    assert (spool.objects.stat().st_ino, 256) in flushed
