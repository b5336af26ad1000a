"""The page of the node: what waits, what failed, where there is space; and the orders that mend it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Protocol

from fastapi import APIRouter, Form, HTTPException, Request, Response
from fastapi.responses import RedirectResponse

from classifier.reasons import RESULTS
from db import changes
from db.recent import recent
from db.session import Database
from db.status import Counts, Failure, Heartbeat, ProblemStudies, Undelivered
from db.workload import Workload, workload
from pacs_node import orders
from pacs_node.config import Settings
from pacs_node.errors import UserError
from pacs_node.web import charts, wording
from pacs_node.web.show import Show
from pacs_node.web.visitor import record, require_admin

_WEEK = timedelta(days=7)
_WORDS = {
    "score": "to be scored",
    "rescore": "to be scored again",
    "report": "to be reported",
    "page": "pages to be made",
    "heatmap": "heat maps to be drawn",
    "deliver": "to be delivered",
    "commit": "to be committed",
    "confirm": "commitments to be answered",
}


class NodeState(Protocol):
    """What `pacs-node status` knows."""

    @property
    def counts(self) -> Counts: ...
    @property
    def failures(self) -> list[Failure]: ...
    @property
    def heartbeats(self) -> list[Heartbeat]: ...
    @property
    def undelivered(self) -> list[Undelivered]: ...
    @property
    def free_bytes(self) -> int | None: ...
    @property
    def floor_bytes(self) -> int: ...
    @property
    def unconfigured(self) -> list[str]: ...
    @property
    def problem_studies(self) -> list[ProblemStudies]: ...
    @property
    def problems(self) -> list[str]: ...


Look = Callable[[], NodeState]
"""Looks at the whole node."""


@dataclass(frozen=True)
class DestinationState:
    """What can be said of a destination: `state` is ``up``, ``down``, ``gone`` or ``unused``."""

    name: str
    state: str
    waiting: int
    failed: int
    since: datetime | None
    error: str
    delivered_at: datetime | None


@dataclass(frozen=True)
class Coverage:
    """How many images of a sender got an answer, and why others did not: ``(share, reason)``."""

    sender: str
    images: int
    analysed: int
    refused: Sequence[tuple[float, str]]


class NodePage:
    """The page and its orders."""

    def __init__(self, settings: Settings, database: Database, look: Look, show: Show) -> None:
        self._settings, self._database, self._look, self._show = settings, database, look, show
        self.router = APIRouter(include_in_schema=False)
        self.router.add_api_route("/node", self.node, methods=["GET"])
        for path, endpoint in (("retry", self.retry), ("abandon", self.abandon), ("dismiss", self.dismiss)):
            self.router.add_api_route(f"/node/{path}", endpoint, methods=["POST"])

    def node(self, request: Request) -> Response:
        """Show the node."""
        state, now = self._look(), datetime.now(UTC)
        configured = [one.name for one in self._settings.destinations]
        with self._database.read() as session:
            load = workload(session, configured, now)
            images = recent(session, now - _WEEK).images
            mark = changes.mark(session)
        shown: dict[str, Any] = {
            "state": state,
            "mark": mark,
            "now": now,
            "queues": _queues(state.counts, load),
            "hours": charts.bars([(f"{start.astimezone():%H}", number) for start, number in load.hours]),
            "today": sum(number for _, number in load.hours),
            "full": _full(state, load, self._settings.retention.days),
            "destinations": destinations(state, load, configured),
            "senders": coverage(images),
            "done": request.query_params.get("done", "")[:9],
        }
        return self._show(request, "node.html", **shown)

    def retry(self, request: Request, *, study: Annotated[str, Form()] = "") -> Response:
        """Try again what failed, everything or of one study."""
        return self._done(
            request,
            "retry ordered",
            lambda: orders.retry(self._settings, self._database, study or None),
            study or "everything",
        )

    def abandon(self, request: Request, *, destination: Annotated[str, Form()]) -> Response:
        """Give up what waits for a destination that no longer exists."""
        return self._done(
            request,
            "abandon ordered",
            lambda: orders.abandon(self._settings, self._database, destination),
            destination,
        )

    def dismiss(self, request: Request, *, study: Annotated[str, Form()]) -> Response:
        """Let a study be without report."""

        def order() -> int:
            orders.dismiss(self._database, study)
            return 1

        return self._done(request, "dismiss ordered", order, study)

    def _done(self, request: Request, action: str, order: Callable[[], int], detail: str) -> Response:
        require_admin(request)
        with self._database.write() as session:
            record(session, request, action, detail=detail)
        try:
            number = order()
        except UserError as error:
            raise HTTPException(422, str(error)) from error
        return RedirectResponse(f"/node?done={number}", 303)


def _queues(counts: Counts, load: Workload) -> list[tuple[str, int, int, datetime | None]]:
    """Return for each kind of work: its name, what is ready, what failed, and since when the oldest waits."""
    return [
        (
            words,
            counts.jobs.get((kind, "ready"), 0),
            counts.jobs.get((kind, "failed"), 0),
            load.oldest.get(kind),
        )
        for kind, words in _WORDS.items()
    ]


def _full(state: NodeState, load: Workload, retention_days: float) -> str:
    """Say when there will be no space for images."""
    if state.free_bytes is None or not load.daily_bytes:
        return ""
    left = state.free_bytes - state.floor_bytes
    if left <= 0:
        return "Images are refused until there is space."
    rate = f"{wording.size(load.daily_bytes)} come in a day"
    if retention_days:
        return f"{rate}; files are removed after {retention_days:g} days."
    return f"{rate}: full in about {wording.span(timedelta(days=min(left / load.daily_bytes, 36500)))}."


def destinations(state: NodeState, load: Workload, configured: Sequence[str]) -> list[DestinationState]:
    """Return what is known of each destination, those in config.toml first."""
    waiting = {one.destination: one for one in state.undelivered}
    names = [*configured, *(name for name in state.unconfigured if name not in configured)]
    return [_destination(name, state, load, waiting.get(name)) for name in names]


def _destination(name: str, state: NodeState, load: Workload, late: Undelivered | None) -> DestinationState:
    failed = state.counts.deliveries.get((name, "failed"), 0)
    is_down = (late is not None and late.tries > 0) or (failed > 0 and name not in load.delivered)
    said = "down" if is_down else "up" if name in load.delivered else "unused"
    return DestinationState(
        name=name,
        state="gone" if name in state.unconfigured else said,
        waiting=late.reports if late else 0,
        failed=failed,
        since=late.since if late else None,
        error=wording.plain(late.error or "") if late else "",
        delivered_at=load.delivered.get(name),
    )


def coverage(images: Mapping[tuple[str, str, str], int]) -> list[Coverage]:
    """Return how much of what each sender sent got an answer; results of programs are no images."""
    totals: Counter[str] = Counter()
    analysed: Counter[str] = Counter()
    refused: dict[str, Counter[str]] = {}
    for (sender, decision, reason), number in images.items():
        if reason in RESULTS:
            continue
        totals[sender] += number
        if decision == "not_scored":
            refused.setdefault(sender, Counter())[reason] += number
        elif decision != "waiting":
            analysed[sender] += number
    return [
        Coverage(
            sender,
            number,
            analysed[sender],
            [(why / number, reason) for reason, why in refused.get(sender, Counter()).most_common(3)],
        )
        for sender, number in totals.most_common()
    ]
