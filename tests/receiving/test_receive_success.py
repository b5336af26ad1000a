"""Nothing but Success means stored: what fails on the way to disk and database is refused, and says why."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest
from sqlalchemy import text
from sqlalchemy.engine.default import DefaultDialect

from db import queries
from db.errors import DatabaseDown
from db.session import sqlite
from pacs_node.storage.arriving import Arriving
from tests.conftest import radiograph, save
from tests.helpers import receiving
from tests.helpers.receiving import (
    Listen,
    Node,
    assert_refused,
    associated,
    context_of,
    logged,
    send,
    wait_until,
)

# Fixtures: pytest finds them by the names that they have here.
listen, node, image = receiving.listen, receiving.node, receiving.image


def no_space(*_: object) -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_below_its_floor_refuses(listen: Listen, image: Path) -> None:
    node = listen(min_free_mebibytes=2**40)
    answer = send(node, image)
    free = node.spool.free_bytes() // 2**20
    assert answer.ErrorComment.startswith("Spool almost full: ")
    assert abs(int(answer.ErrorComment.split()[3]) - free) < 1024
    assert answer.Status == 0xA700
    node.assert_holds_nothing()


def test_a_disk_that_is_full_refuses(node: Node, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", no_space)
    assert_refused(node, send(node, image), 0xA700, "Cannot write the spool: No space left on device")


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let the operating system refuse to write more to any one file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_cannot_be_written_to_its_end_refuses(node: Node, image: Path, tmp_path: Path) -> None:
    large = save(radiograph(PixelData=bytes(4 * 2**20)), tmp_path / "large.dcm")
    with associated(node, context_of(image)) as association:
        with largest_file(2 * 2**20):
            answer = association.send_c_store(large)
        assert_refused(node, answer, 0xA700, "Cannot write the spool: File too large")
        assert association.send_c_store(image).Status == 0x0000  # it can go on


def test_a_spool_that_vanished_refuses(node: Node, image: Path) -> None:
    shutil.rmtree(node.spool.root)
    answer = send(node, image)
    assert (answer.Status, answer.ErrorComment) == (
        0xA700,
        "Cannot write the spool: No such file or directory",
    )
    assert (node.instances(), node.jobs()) == ([], [])
    assert not node.spool.root.exists()  # it may be a mount point
    node.spool.prepare()
    assert send(node, image).Status == 0x0000


def test_a_database_that_raises_refuses(node: Node, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def _down(*_: object) -> NoReturn:
        raise DatabaseDown("The database does not work: it is on holiday.")

    monkeypatch.setattr(queries, "add_instance", _down)
    answer = send(node, image)
    assert (answer.Status, answer.ErrorComment) == (0xA700, "The database is not available")
    assert (node.instances(), node.jobs()) == ([], [])


def test_a_database_without_its_table_refuses_until_it_is_back(node: Node, image: Path) -> None:
    rename = "ALTER TABLE {} RENAME TO {}"
    with node.database.write() as session:
        session.execute(text(rename.format("job", "away")))
    answer = send(node, image)
    assert (answer.Status, answer.ErrorComment) == (0xA700, "The database is not available")
    assert node.instances() == []
    with node.database.write() as session:
        session.execute(text(rename.format("away", "job")))
    assert send(node, image).Status == 0x0000
    assert (len(node.instances()), len(node.jobs())) == (1, 2)


def test_a_database_file_that_cannot_be_opened_refuses(node: Node, image: Path) -> None:
    node.database.close()
    file = node.database.file
    assert file is not None
    shutil.move(file, file.with_suffix(".away"))
    file.mkdir()
    assert send(node, image).Status == 0xA700
    file.rmdir()
    shutil.move(file.with_suffix(".away"), file)
    assert node.instances() == []
    assert send(node, image).Status == 0x0000
    assert len(node.instances()) == 1


def test_a_commit_that_fails_is_no_success(node: Node, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def _broken(*_: object) -> NoReturn:
        raise sqlite.OperationalError("disk I/O error")

    with monkeypatch.context() as patched:
        patched.setattr(DefaultDialect, "do_commit", _broken)
        answer = send(node, image)
    assert (answer.Status, answer.ErrorComment) == (0xA700, "The database is not available")
    assert (node.instances(), node.jobs()) == ([], [])


def test_success_waits_for_the_commit(node: Node, image: Path) -> None:
    with ThreadPoolExecutor(1) as sender:
        with node.database.write() as session:
            session.execute(text("SELECT 1"))  # nobody else can write now
            answer = sender.submit(send, node, image)
            wait_until(lambda: bool(list(node.spool.stored())))
            time.sleep(0.3)
            assert not answer.done()
        assert answer.result().Status == 0x0000
    assert len(node.instances()) == 1


def test_an_object_is_on_the_disk_before_its_row_is_committed(
    node: Node, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit: Any = DefaultDialect.do_commit
    fsync = os.fsync
    synced: list[int] = []
    seen: list[bool] = []

    def _fsync(descriptor: int) -> None:
        time.sleep(0.2)  # a slow disk: all else is done long before
        fsync(descriptor)
        synced.append(os.fstat(descriptor).st_ino)

    def _commit(dialect: Any, connection: Any) -> None:
        (file,) = [node.spool.path(digest) for digest in node.spool.stored()]
        seen.append(file.stat().st_ino in synced and file.parent.stat().st_ino in synced)
        commit(dialect, connection)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", _fsync)
        patched.setattr(DefaultDialect, "do_commit", _commit)
        assert send(node, image).Status == 0x0000
    assert seen == [True]


def test_a_file_that_cannot_be_kept_leaves_no_row(
    node: Node, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def _broken(_: int) -> NoReturn:
        time.sleep(0.2)
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", _broken)
        answer = send(node, image)
    assert answer.Status == 0xA700
    assert "Cannot write the spool" in answer.ErrorComment
    node.assert_holds_nothing()


def test_an_unexpected_error_is_no_success_and_is_logged(
    node: Node, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def _bug(*_: object) -> NoReturn:
        raise ValueError("Test^Alice")

    monkeypatch.setattr(Arriving, "digest", _bug)
    with logged() as lines:
        assert send(node, image).Status == 0xC211
    node.assert_holds_nothing()
    assert "instance not stored" in lines()
    assert "ValueError" in lines()
    assert "Alice" not in lines()
