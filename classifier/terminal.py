"""The console of every command: what strangers wrote cannot command the terminal that it is shown on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import typer
from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook, RenderResult
from rich.measure import Measurement
from rich.segment import Segment

from classifier.untrusted import printable_lines

__all__ = ["console"]


def console(**options: Any) -> Console:
    """Return a console that writes out control and directional characters of all that is printed.

    Parameters
    ----------
    options
        As `rich.console.Console` takes them.
    """
    made = Console(**{"emoji": False, **options})  # a name may be ":skull:"
    made.push_render_hook(_Harmless())
    return made


@dataclass(frozen=True)
class _Clean:
    """A renderable whose text is made printable; what rich itself says to the terminal passes."""

    inside: ConsoleRenderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self.inside, options):
            is_text = not segment.control
            yield Segment(printable_lines(segment.text), segment.style) if is_text else segment

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement.get(console, options, self.inside)


class _Harmless(RenderHook):
    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return list(_cleaned(renderables))


def version_option(program: str) -> Any:
    """Return the option `--version` of a program, for the callback of its commands."""

    def told(is_asked: bool) -> None:
        if is_asked:
            typer.echo(f"{program} {version('pacs-node')}")
            raise typer.Exit

    return typer.Option("--version", callback=told, is_eager=True, help="Print the version and exit.")


def _cleaned(renderables: Iterable[ConsoleRenderable]) -> Iterable[ConsoleRenderable]:
    return map(_Clean, renderables)
