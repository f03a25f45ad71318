"""HTML pages from the templates beside this file, which escape all that they are given."""

from __future__ import annotations

from importlib import resources

from jinja2 import DictLoader, Environment, StrictUndefined

_TEMPLATES = ("page.html.jinja", "parts.html.jinja", "run.html.jinja", "ablation.html.jinja")


def render(template: str, **values: object) -> str:
    """Return a page of one self-contained file, without scripts and requests."""
    folder = resources.files(__package__)
    sources = {name: (folder / name).read_text("utf-8") for name in _TEMPLATES}
    environment = Environment(
        loader=DictLoader(sources),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(values)
