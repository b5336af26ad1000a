"""One self-contained HTML page: its figures are inside it, and nothing is loaded from elsewhere."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment

_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem }
  h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem }
  table { border-collapse: collapse; font-variant-numeric: tabular-nums }
  th, td { padding: .25rem .9rem .25rem 0; text-align: left; vertical-align: top }
  tr { border-bottom: 1px solid #ddd }
  .figures { display: flex; flex-wrap: wrap; gap: 1rem }
  img { max-width: 100%; max-height: 60rem; height: auto }
  .figures img { flex: 0 1 auto; max-width: 31rem } .wide img { max-width: 100% }
  pre { background: #f6f6f6; padding: 1rem; overflow-x: auto } .note { color: #555 }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p class="note">{{ note }}</p>
{% for section in sections %}
<h2>{{ section.title }}</h2>
{% if section.text %}<p>{{ section.text }}</p>{% endif %}
{% if section.rows %}
<table>
{% for name, value in section.rows.items() %}<tr><th scope="row">{{ name }}</th><td>{{ value }}</td></tr>
{% endfor %}</table>
{% endif %}
{% if section.preformatted %}<pre>{{ section.preformatted }}</pre>{% endif %}
{% if section.figures %}
<div class="figures{{ ' wide' if section.figures|length == 1 }}">
{% for figure in section.figures %}
<img alt="{{ figure.stem }}" src="data:image/png;base64,{{ encode(figure) }}">
{% endfor %}
</div>
{% endif %}
{% endfor %}
</body>
</html>
"""


@dataclass(frozen=True)
class Section:
    """One part of a page: a text, a table of names and values, a preformatted text, pictures (PNG files)."""

    title: str
    text: str = ""
    rows: Mapping[str, object] = field(default_factory=dict)
    preformatted: str = ""
    figures: Sequence[Path] = ()


def write(path: Path, title: str, note: str, sections: Sequence[Section]) -> None:
    """Write the page."""
    template = Environment(autoescape=True, trim_blocks=True).from_string(_TEMPLATE)
    path.write_text(
        template.render(title=title, note=note, sections=sections, encode=_encode), encoding="utf-8"
    )


def _encode(figure: Path) -> str:
    return base64.b64encode(figure.read_bytes()).decode()
