"""HTML pages from the templates beside this file, which escape every value."""

from __future__ import annotations

from importlib import resources

from jinja2 import DictLoader, Environment, StrictUndefined

_TEMPLATES = ("page.html.jinja", "parts.html.jinja", "run.html.jinja", "ablation.html.jinja")


def render(template: str, **values: object) -> str:
    """Render a template to one self-contained page, without scripts and requests."""
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
