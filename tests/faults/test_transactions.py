"""No transaction is open while something is decoded, scored, read, built, sent or asked; that takes long."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from db import commitments
from db import session as session_module
from db.session import Database
from pacs_node.commitment import stages as commitment
from pacs_node.commitment.stages import CommitStage, ConfirmStage
from pacs_node.config import Destination, Modality, Settings
from pacs_node.delivering import link
from pacs_node.delivering import stage as delivering
from pacs_node.delivering.stage import DeliverStage
from pacs_node.reporting import stage as reporting
from pacs_node.scoring.stage import ScoreStage
from tests.conftest import radiograph
from tests.faults.pacs import Pacs
from tests.helpers.workbench import Bench


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What was done, each with the number of transactions that its thread had open then."""
    depth, seen = threading.local(), []
    original = session_module._transaction

    @contextmanager
    def counted(engine: Engine, name: str) -> Iterator[Session]:
        depth.now = getattr(depth, "now", 0) + 1
        try:
            with original(engine, name) as session:
                yield session
        finally:
            depth.now -= 1

    def watch(owner: Any, name: str) -> None:
        function = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            seen.append((name, getattr(depth, "now", 0)))
            return function(*args, **kwargs)

        monkeypatch.setattr(owner, name, watched)

    monkeypatch.setattr(session_module, "_transaction", counted)
    watch(ScoreStage, "_predict")
    watch(reporting, "read_header")
    watch(reporting, "build")
    watch(delivering, "open_link")
    watch(link.Link, "send")
    monkeypatch.setattr(commitment, "open_for_commitment", lambda *_, **__: nullcontext())
    monkeypatch.setattr(commitment, "ask", lambda *_: 0x0110)
    monkeypatch.setattr(commitment, "tell", lambda *_: 0x0000)
    for name in ("open_for_commitment", "ask", "tell"):
        watch(commitment, name)
    return seen


def test_no_transaction_is_open_during_long_work(
    seen: list[tuple[str, int]], database: Database, tmp_path: Path
) -> None:
    with Pacs(commits=True) as pacs:
        to = Destination(ae_title="PACS", host="127.0.0.1", port=pacs.port)
        modality = Modality(ae_title="MODALITY", host="127.0.0.1", port=1)
        settings = Settings(destinations=(to,), modalities=(modality,))
        bench = Bench(database, tmp_path, settings=settings)
        image = radiograph()
        bench.receive(image)
        bench.score()
        bench.report()
        bench.work(DeliverStage(database, to, "PACS_NODE", settings.deliver))
        bench.work(CommitStage(database, to, "PACS_NODE", settings.deliver))
        now = datetime.now(UTC)
        with database.write() as session:
            commitments.add_wanted(
                session,
                "MODALITY",
                "2.25.1",
                [(str(image.SOPClassUID), str(image.SOPInstanceUID))],
                asked_at=now,
                give_up_at=now + timedelta(hours=1),
                wait_seconds=0,
            )
        bench.work(ConfirmStage(database, bench.spool, settings))
    done = {name for name, _ in seen}
    assert done >= {"_predict", "read_header", "build", "open_link", "send", "ask", "tell"}
    assert [name for name, depth in seen if depth] == []
