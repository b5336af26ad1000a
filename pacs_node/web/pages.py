"""The pages: list, study, image, report; and verdicts."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Form, HTTPException, Request, Response
from fastapi.responses import RedirectResponse

from classifier.errors import NotScorable
from db import changes, reading_list, verdicts
from db.reading_list import SAMPLED, ListedImage, ListedStudy, Wanted
from db.session import Database
from pacs_node.config import Settings
from pacs_node.storage.spool import Spool
from pacs_node.web import report_tree, timeline, viewers, wording
from pacs_node.web.pictures import Pictures
from pacs_node.web.show import Show
from pacs_node.web.visitor import FOLLOWS, record, visitor

_LONGEST_COMMENT = 4000  # characters
_FOLLOWED_SECONDS = 300.0
LABELS = {
    "agree": "agrees",
    "pneumonia": "pneumonia",
    "no_pneumonia": "no pneumonia",
    "unreadable": "cannot be read",
}
_COLUMNS = {
    "received": "Received",
    "study": "Study",
    "why": "Why",
    "age": "Age",
    "likeness": "Likeness",
    "model": "Model",
    "report": "Report",
    "verdict": "Verdict",
}
_FILTERS = ("text", "decision", "sender", "reason", "delivery", "first", "last", "order")


class Pages:
    """All pages and what they are made of."""

    def __init__(
        self, settings: Settings, database: Database, spool: Spool, pictures: Pictures, show: Show
    ) -> None:
        self._settings, self._database, self._spool = settings, database, spool
        self._pictures, self._show = pictures, show
        self._followed: dict[tuple[str, str], float] = {}
        self.router = APIRouter(include_in_schema=False)
        for path, endpoint in (
            ("/", self.studies),
            ("/blind", self.blind),
            ("/studies/{uid}", self.study),
            ("/studies/{uid}/images/{image}", self.image),
            ("/studies/{uid}/report", self.report),
            ("/studies/{uid}/report.dcm", self.report_file),
        ):
            self.router.add_api_route(path, endpoint, methods=["GET"])
        self.router.add_api_route("/studies/{uid}/verdicts", self.verdict, methods=["POST"])

    def studies(self, request: Request) -> Response:
        """Show the list."""
        asked = {name: request.query_params.get(name, "").strip() for name in _FILTERS}
        wanted = _wanted(asked, request.query_params.get("after", ""))
        with self._database.read() as session:
            page = reading_list.page(session, wanted)
            given = verdicts.of_studies(session, [study.id for study in page.studies])
            senders = reading_list.senders(session)
            mark = changes.mark(session)
        self._record_list(request, urlencode(_filled(asked)))
        following = None
        if page.next:
            following = urlencode({**_filled(asked), "after": f"{page.next[0]!r},{page.next[1]}"})
        links = {
            decision: urlencode(_filled({**asked, "decision": decision}))
            for decision in ("", *wording.ANSWERS)
        }
        shown: dict[str, Any] = {
            "page": page,
            "given": given,
            "senders": senders,
            "asked": asked,
            "following": following,
            "mark": mark,
            "columns": _COLUMNS,
        }
        return self._show(request, "list.html", **shown, links=links)

    def blind(self, request: Request) -> Response:
        """Show the blind sample, without answers."""
        negatives = self._settings.verdicts.blind_negatives
        wanted = Wanted(unjudged_by=visitor(request).name, negatives=negatives)
        with self._database.read() as session:
            page = reading_list.page(session, wanted)
        return self._show(request, "blind.html", page=page, negatives=negatives, sampled=SAMPLED)

    def study(self, request: Request, uid: str) -> Response:
        """Show one study; blind, without anything that tells the answer."""
        is_blind = request.query_params.get("blind") == "1"
        with self._database.read() as session:
            one = _known(reading_list.study(session, uid))
            priors = reading_list.priors(session, one)
            given = verdicts.of_studies(session, [one.id]).get(one.id, [])
            revisions = reading_list.revisions(session, one.id)
        self._record(request, "study viewed blind" if is_blind else "study viewed", one)
        images = [image for image in one.images if not image.is_removed]
        shown: dict[str, Any] = {
            "study": one,
            "priors": priors,
            "given": given,
            "blind": is_blind,
            "first": (None if is_blind else wording.telling(images)) or next(iter(images), None),
            "events": timeline.events(one, revisions, with_answers=not is_blind),
            "viewer": viewers.address(self._settings.web.viewer_url, one),
        }
        return self._show(request, "study.html", **shown)

    def image(self, request: Request, uid: str, image: int) -> Response:
        """Send the pixels of one image."""
        with self._database.read() as session:
            whole = _known(reading_list.study(session, uid))
        one = _image_of(whole, image)
        self._record(request, "image viewed", whole, one.sop_instance_uid)
        try:
            content = self._pictures.grey16(self._spool.path(one.digest))
        except NotScorable as refusal:
            raise HTTPException(
                422, f"{refusal.reason.meaning}. {wording.plain(refusal.detail)}"
            ) from refusal
        except OSError as error:
            raise HTTPException(404, "The file of this image is not in the spool any more.") from error
        return Response(content, media_type="application/octet-stream")

    def report(self, request: Request, uid: str) -> Response:
        """Show the content tree of the report."""
        one, content = self._report(uid)
        self._record(request, "report viewed", one)
        return self._show(request, "report.html", study=one, lines=report_tree.lines(content))

    def report_file(self, request: Request, uid: str) -> Response:
        """Send the report as it is sent to PACS."""
        one, content = self._report(uid)
        self._record(request, "report taken", one)
        name = {"Content-Disposition": 'attachment; filename="report.dcm"'}
        return Response(content, media_type="application/dicom", headers=name)

    def verdict(
        self,
        request: Request,
        uid: str,
        *,
        image: Annotated[int, Form()],
        label: Annotated[str, Form()],
        comment: Annotated[str, Form(max_length=_LONGEST_COMMENT)] = "",
        blind: Annotated[bool, Form()] = False,
    ) -> Response:
        """Record what a person says of an image."""
        with self._database.read() as session:
            one = _known(reading_list.study(session, uid))
        judged = _image_of(one, image)
        if not verdicts.fits(label, judged.decision) or (blind and label == "agree"):
            raise HTTPException(422, "There is no answer to agree with: say what the image shows.")
        person = visitor(request).name
        with self._database.write() as session:
            visible = not blind or verdicts.has_seen(session, one.id, person)
            verdicts.give(
                session,
                judged.id,
                label,
                comment.strip(),
                person=person,
                at=datetime.now(UTC),
                score_was_visible=visible,
            )
            record(session, request, "verdict given", study_id=one.id, detail=label)
        after = "?judged=blind" if blind else ""
        return RedirectResponse(f"/studies/{one.study_instance_uid}{after}#verdict", 303)

    def _report(self, uid: str) -> tuple[ListedStudy, bytes]:
        with self._database.read() as session:
            one = _known(reading_list.study(session, uid))
            if one.report is None:
                raise HTTPException(404, "There is no report of this study yet.")
            return one, reading_list.report_content(session, one.report.id)

    def _record_list(self, request: Request, asked: str) -> None:
        """Record who looks at the list; of a page that follows changes by itself, now and then."""
        if FOLLOWS in request.headers:
            now, key = time.monotonic(), (visitor(request).name, asked)
            if now < self._followed.get(key, -_FOLLOWED_SECONDS) + _FOLLOWED_SECONDS:
                return
            self._followed = {one: at for one, at in self._followed.items() if now < at + _FOLLOWED_SECONDS}
            self._followed[key] = now
        self._record(request, "list viewed", None, asked)

    def _record(self, request: Request, action: str, one: ListedStudy | None, detail: str = "") -> None:
        with self._database.write() as session:
            record(session, request, action, study_id=one.id if one else None, detail=detail)


def _known(study: ListedStudy | None) -> ListedStudy:
    if study is None:
        raise HTTPException(404, "The node has no study with this UID.")
    return study


def _image_of(study: ListedStudy, image_id: int) -> ListedImage:
    for image in study.images:
        if image.id == image_id:
            return image
    raise HTTPException(404, "The study has no such image.")


def _filled(asked: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in asked.items() if value}


def _wanted(asked: Mapping[str, str], after: str) -> Wanted:
    try:
        first, last = (date.fromisoformat(asked[name]) if asked[name] else None for name in ("first", "last"))
        probability, _, key = after.partition(",")
        keys = (float(probability), int(key)) if after else None
    except (ValueError, OverflowError) as error:
        raise HTTPException(422, "The address of this page is wrong: go back to the list.") from error
    days = None
    if first or last:
        days = f"{first or date.min:%Y%m%d}".rjust(8, "0"), f"{last or date.max:%Y%m%d}"
    return Wanted(
        text=asked["text"].replace("\0", "")[:256] or None,
        study_dates=days,
        sender=asked["sender"] or None,
        decision=asked["decision"] or None,
        reason=asked["reason"] or None,
        delivery=asked["delivery"] or None,
        suspicious=asked["order"] == "suspicious",
        after=keys if keys is None or abs(keys[1]) < 2**62 else None,
    )
