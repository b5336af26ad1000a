"""Pages of templates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import Request, Response
from fastapi.templating import Jinja2Templates

from pacs_node.web import wording


class Show:
    """Makes a page of a template; each says whether it is for research only."""

    def __init__(self, *, is_research: bool, **known: Any) -> None:
        self._is_research = is_research
        self._templates = Jinja2Templates(Path(__file__).parent / "templates")
        self._templates.env.globals.update(w=wording, **known)

    def __call__(self, request: Request, name: str, /, *, status: int = 200, **shown: Any) -> Response:
        """Return the page."""
        shown["is_research"] = self._is_research
        return self._templates.TemplateResponse(request, name, shown, status_code=status)

    def trouble(self, request: Request, status: int, title: str, detail: str) -> Response:
        """Say in words what is wrong."""
        return self(request, "trouble.html", status=status, title=title, detail=detail, retry=status == 503)

    def no_database(self, request: Request) -> Response:
        """Say that the database is away; the page loads itself again."""
        sentence = "Nothing is lost. This page tries again by itself."
        return self.trouble(request, 503, "The database does not answer", sentence)
