"""HTML pages from the templates beside this file, which escape every value.

No page loads anything. The one script, which sorts a table, is allowed by its hash: a page runs no
other, whatever texts are on it.
"""

from __future__ import annotations

import base64
import hashlib
from importlib import resources

from jinja2 import DictLoader, Environment, StrictUndefined

from forty2.report.markdown import Table

_TEMPLATES = (
    "page.html.jinja",
    "parts.html.jinja",
    "run.html.jinja",
    "ablation.html.jinja",
    "sweep.html.jinja",
    "archive.html.jinja",
    "failures.html.jinja",
)
_PHONE = 42
"""Characters of a row that a phone shows beside each other, 390 pixels wide."""
_NUMBER = "+-–0123456789"
"""First characters of a cell that the templates set as a figure."""
_BETWEEN = 1.2
"""Width of the space between two columns, in characters."""


def is_wider_than_a_phone(table: Table) -> bool:
    """Return whether a table of figures has to be scrolled sideways on a phone.

    Its head and its texts are wrapped there between words; figures and the first column are not.
    """
    width = 0.0
    for place, (head, *cells) in enumerate(zip(table.head, *table.rows, strict=True)):
        whole = [cell for cell in cells if place == 0 or cell[:1] in _NUMBER]
        words = [word for cell in (head, *cells) for word in cell.split()]
        width += max(map(len, [*whole, *words]), default=0) + _BETWEEN
    return width > _PHONE


def render(template: str, **values: object) -> str:
    """Render a template to one self-contained page, without requests."""
    folder = resources.files(__package__)
    sources = {name: (folder / name).read_text("utf-8") for name in _TEMPLATES}
    environment = Environment(
        loader=DictLoader(sources),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["wider_than_a_phone"] = is_wider_than_a_phone
    script = (folder / "sort_table.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template).render(
        values, script=script, script_hash=f"'sha256-{digest}'"
    )
