"""One line for each event: its name, then what it is about, as text or JSON.

Patient names and IDs are never logged; studies and objects are named by their UIDs. Whatever else a peer
sent is printable before it is written.
"""

from __future__ import annotations

import logging
import sys
import threading
import traceback
import types
from typing import Any

import structlog

from classifier.untrusted import printable, printable_lines
from pacs_node.config import LogSettings

Log = structlog.stdlib.BoundLogger

_TRACES = ("exception", "traceback", "stack")
_QUIET = ("pynetdicom", "pydicom", "alembic", "sqlalchemy", "PIL", "monai", "matplotlib", "uvicorn")


def get(name: str) -> Log:
    """Return the logger of a module; usable before `configure`."""
    logger: Log = structlog.stdlib.get_logger(name)
    return logger


def configure(settings: LogSettings) -> None:
    """Send all events of this process to standard error."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=False),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _made_printable,
                _renderer(settings.format),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.level)
    for name in _QUIET:
        # What these libraries have to say is said in our own words, or is noise
        logging.getLogger(name).setLevel(logging.CRITICAL)
    sys.excepthook = crashed
    threading.excepthook = lambda crash: crashed(
        crash.exc_type, crash.exc_value or crash.exc_type(), crash.exc_traceback
    )


def crashed(kind: type[BaseException], _error: BaseException, where: types.TracebackType | None) -> None:
    """Log an exception that nobody expected, without its message, which may hold patient data."""
    frames = "".join(traceback.format_tb(where))
    get(__name__).critical("crashed", exception=kind.__name__, traceback=frames)


def _made_printable(_logger: Any, _method: str, event: Any) -> Any:
    """Make every key and value of an event printable; a trace keeps its lines, indented behind the first."""
    return {
        printable(str(key)): _indented(str(value)) if key in _TRACES else _printable(value)
        for key, value in event.items()
    }


def _indented(trace: str) -> str:
    return printable_lines(trace).replace("\n", "\n  ")  # so that none of them looks like an event


def _printable(value: Any) -> Any:
    if isinstance(value, dict):
        return {printable(str(key)): _printable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_printable(inner) for inner in value]
    return value if value is None or isinstance(value, bool | int | float) else printable(str(value))


def _renderer(form: str) -> Any:
    if form == "json":
        return structlog.processors.JSONRenderer()
    return structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=20, sort_keys=False)
