"""HTML pages from the templates beside this file, which escape every value.

No page loads anything. The one script, which sorts a table, is allowed by its hash: a page runs no
other, whatever texts are on it.
"""

from __future__ import annotations

import base64
import hashlib
from importlib import resources

from jinja2 import DictLoader, Environment, StrictUndefined

_TEMPLATES = (
    "page.html.jinja",
    "parts.html.jinja",
    "run.html.jinja",
    "ablation.html.jinja",
    "sweep.html.jinja",
    "archive.html.jinja",
    "failures.html.jinja",
)


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
    script = (folder / "sort_table.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template).render(
        values, script=script, script_hash=f"'sha256-{digest}'"
    )
