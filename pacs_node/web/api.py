"""Results for programs: read-only JSON under /api/v1, by token, page by page."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, create_model
from sqlalchemy.orm import Session

from db import audit, row_pages, sign_ins, tokens
from db.errors import DatabaseError
from db.results import RESULT_COLUMNS, STUDY_COLUMNS, Filter
from db.row_pages import VERDICT_COLUMNS, RowPage
from db.session import Database
from pacs_node import __version__, log
from pacs_node.web.visitor import address, secret_hash, source

_log = log.get(__name__)

PATH = "/api/v1"
_NUMBERS = {"probability", "threshold", "novelty", "age", "highest_probability", "seconds_to_delivery"}
_COUNTS = {"report_revision", "image_rows", "image_columns", "bits_stored", "counts"}
_ABOUT = "Read-only. Make a token by `pacs-node token add NAME`; each request is written into the audit."

_Text = Annotated[str | None, Field(max_length=256, pattern=r"^[^\x00]*$")]
_Cursor = Annotated[str | None, Field(max_length=512, pattern=r"^[A-Za-z0-9_=-]*$")]


def _iso(value: object) -> object:
    """Refuse a number: pydantic would take it for seconds since 1970."""
    if isinstance(value, str) and "-" not in value[1:]:
        raise ValueError("write it by ISO 8601")
    return value


_Day = Annotated[date | None, BeforeValidator(_iso)]
_Moment = Annotated[AwareDatetime | None, BeforeValidator(_iso)]


class Asked(BaseModel):
    """What may be asked for; the same as by `pacs-node results`."""

    model_config = ConfigDict(extra="forbid")

    patient: _Text = Field(None, description="Patient ID or name in full; * matches anything.")
    accession: _Text = Field(None, description="Accession number; * matches anything.")
    study: _Text = Field(None, description="Study Instance UID.")
    first_study_date: _Day = None
    last_study_date: _Day = None
    since: _Moment = Field(None, description="Received (or given) since; with time zone.")
    until: _Moment = Field(None, description="Received (or given) before; with time zone.")
    decision: Literal["positive", "negative", "undetermined", "not_scored", "waiting"] | None = None
    min_probability: Annotated[float | None, Field(ge=0, le=1)] = None
    limit: Annotated[int, Field(ge=1, le=1000, description="Most rows of a page.")] = 100
    after: _Cursor = Field(None, description="`next` of the page before.")

    def wanted(self, **more: Any) -> Filter:
        """Return the filter for the database."""
        dates = None
        if self.first_study_date or self.last_study_date:
            first, last = self.first_study_date or date.min, self.last_study_date or date.max
            dates = _digits(first), _digits(last)
        return Filter(
            patient=self.patient,
            accession=self.accession,
            study=self.study,
            study_dates=dates,
            since=_utc(self.since),
            until=_utc(self.until),
            decision=self.decision,
            min_probability=self.min_probability,
            **more,
        )


class AskedResults(Asked):
    """What may be asked of results."""

    all: bool = Field(False, description="Also results of programs, such as the node's own reports.")


class Failure(BaseModel):
    """Why there is no answer."""

    detail: str


def _row(name: str, columns: Sequence[str]) -> type[BaseModel]:
    return create_model(name, **{column: (_type_of(column) | None, ...) for column in columns})  # type: ignore[call-overload, no-any-return]


def _type_of(column: str) -> type:
    if column.endswith("_at"):
        return datetime
    if column in _NUMBERS:
        return float
    if column.startswith("images_") or column in _COUNTS:
        return int
    return bool if column == "score_was_visible" else str


def _page_of(name: str, columns: Sequence[str]) -> type[BaseModel]:
    fields: dict[str, Any] = {
        "rows": (list[_row(name, columns)], ...),  # type: ignore[misc]
        "next": (str | None, Field(description="`after` of the next page; null on the last.")),
    }
    return create_model(f"{name}Page", **fields)


class Api:
    """The application under `PATH`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        failures = {
            422: "The question makes no sense",
            401: "No token, or not a valid one",
            429: "Too many tokens that are not valid",
            503: "The database does not answer",
        }
        self.app = FastAPI(
            title="PACS Node",
            version=__version__,
            description=_ABOUT,
            docs_url=None,
            redoc_url=None,
            responses={code: {"model": Failure, "description": said} for code, said in failures.items()},
            dependencies=[Depends(HTTPBearer(auto_error=False))],
        )
        for name, endpoint, columns in (
            ("results", self.results, RESULT_COLUMNS),
            ("studies", self.studies, STUDY_COLUMNS),
            ("verdicts", self.verdicts, VERDICT_COLUMNS),
        ):
            model = _page_of(name.capitalize().removesuffix("s"), columns)
            self.app.add_api_route(f"/{name}", endpoint, methods=["GET"], response_model=model)
        self.app.exception_handler(DatabaseError)(_no_database)
        self.app.exception_handler(RequestValidationError)(_wrong_question)

    def results(self, request: Request, asked: Annotated[AskedResults, Query()]) -> Response:
        """Return rows of the view `results`, the newest first: one for each image."""
        after = _after(asked, (datetime, str, int))
        wanted = asked.wanted(with_results=asked.all, after=after)
        return self._answer(request, lambda session: row_pages.results(session, wanted, asked.limit))

    def studies(self, request: Request, asked: Annotated[Asked, Query()]) -> Response:
        """Return rows of the view `studies`, the newest first; `decision` is that of the report."""
        wanted, after = asked.wanted(), _after(asked, (int,))
        return self._answer(
            request, lambda session: row_pages.studies(session, wanted, asked.limit, after and after[0])
        )

    def verdicts(self, request: Request, asked: Annotated[Asked, Query()]) -> Response:
        """Return verdicts, the newest first; the last one of an image counts."""
        wanted, after = asked.wanted(), _after(asked, (int,))
        return self._answer(
            request, lambda session: row_pages.verdicts(session, wanted, asked.limit, after and after[0])
        )

    def _answer(self, request: Request, rows_of: Callable[[Session], RowPage]) -> Response:
        person = self._holder(request)
        with self._database.read() as session:
            page = rows_of(session)
        what = f"{request.url.path.rpartition('/')[2]} read"
        self._record(request, what, person, f"{len(page.rows)} rows; {request.url.query}")
        content = {"rows": page.rows, "next": _encoded(page.next)}
        return Response(json.dumps(content, default=_text, allow_nan=False), media_type="application/json")

    def _holder(self, request: Request) -> str:
        """Return for which program a request comes, as the audit names it."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        name = None
        if scheme.lower() == "bearer" and token.isascii():
            with self._database.read() as session:
                name = tokens.holder(session, secret_hash(token.strip()))
        if name is not None:
            return f"token {name}"
        if token:
            self._limit_guesses(request)
        need = {"WWW-Authenticate": "Bearer"}
        raise HTTPException(401, "Send a token: Authorization: Bearer TOKEN.", headers=need)

    def _limit_guesses(self, request: Request) -> None:
        """Record a token that is not valid; after too many, no longer."""
        now, who = datetime.now(UTC), source(request)
        with self._database.write() as session:
            attempt = sign_ins.begin(session, f"token from {who}"[:64], who, None, now)
        if attempt is None:
            _log.warning("too many wrong tokens", address=address(request))
            raise HTTPException(429, "Too many tokens that are not valid: wait a quarter of an hour.")
        self._record(request, "token refused", "unknown")

    def _record(self, request: Request, action: str, person: str, detail: str = "") -> None:
        with self._database.write() as session:
            audit.record(
                session,
                action,
                person=person,
                address=address(request),
                at=datetime.now(UTC),
                detail=detail,
            )


def _wrong_question(_request: Request, error: RequestValidationError) -> Response:
    said = (f"{'.'.join(map(str, one['loc'][1:]))}: {one['msg']}" for one in error.errors())
    return JSONResponse({"detail": f"{'; '.join(said)}."}, 422)


def _no_database(_request: Request, error: Exception) -> Response:
    _log.error("database failed", role="web", cause=str(error))
    return JSONResponse({"detail": "The database does not answer; nothing is lost."}, 503)


def _digits(day: date) -> str:
    return day.isoformat().replace("-", "")


def _utc(moment: datetime | None) -> datetime | None:
    try:
        return moment.astimezone(UTC) if moment else None
    except OverflowError as error:
        raise HTTPException(422, "There is no such time in UTC.") from error


def _text(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    raise TypeError(type(value))


def _encoded(key: tuple[Any, ...] | None) -> str | None:
    if key is None:
        return None
    return base64.urlsafe_b64encode(json.dumps(key, default=_text).encode()).decode()


def _after(asked: Asked, types: tuple[type, ...]) -> Any:
    """Return the key in a cursor, which may be any text."""
    if not asked.after:
        return None
    try:
        values = json.loads(base64.urlsafe_b64decode(asked.after.encode()))
        key: tuple[Any, ...] = tuple(
            datetime.fromisoformat(value).astimezone(UTC) if kind is datetime else value
            for value, kind in zip(values, types, strict=True)
        )
        is_right = all(type(value) is kind for value, kind in zip(key, types, strict=True))
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise HTTPException(422, "`after` is not the `next` of a page before.") from error
    if not is_right or not all(map(_is_storable, key)):
        raise HTTPException(422, "`after` is not the `next` of a page before.")
    return key


def _is_storable(value: object) -> bool:
    """Tell whether both databases can compare a value with their own."""
    if isinstance(value, int):
        return 0 <= value < 2**63
    return not isinstance(value, str) or (value.isascii() and value.isprintable())
