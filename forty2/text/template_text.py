"""What a chat template's source says of the texts that it looks into."""

from __future__ import annotations

import functools
import re

import jinja2
from jinja2 import nodes

_GENERATION_TAG = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")
"""Tags with which templates show transformers what an assistant writes."""
CLOCK = "strftime_now"
"""Function that gives a template the date; one stopped at a date is a macro of this name."""
_ROLES = ("system", "user", "assistant", "tool", "developer", "function", "ipython")
_LOOKS = (nodes.Compare, nodes.Call, nodes.Filter, nodes.Test)
"""Where a template looks for a text, splits at it or replaces it."""


def inspected_texts(template: str) -> frozenset[str]:
    """Find the texts that a template looks for, splits at or replaces."""
    return _texts_in(template, _LOOKS)


def variable_texts(template: str) -> frozenset[str]:
    """Find the texts that a template gives to variables, by which it may look for them."""
    return _texts_in(template, (nodes.Assign,))


@functools.lru_cache(maxsize=16)
def _texts_in(template: str, kinds: tuple[type[nodes.Node], ...]) -> frozenset[str]:
    template = _GENERATION_TAG.sub("", template)
    try:
        tree = jinja2.Environment(extensions=["jinja2.ext.loopcontrols", "jinja2.ext.do"]).parse(
            template
        )
    except jinja2.TemplateError:
        return frozenset([""])  # found in every text
    tree.body = [n for n in tree.body if not isinstance(n, nodes.Macro) or n.name != CLOCK]
    consts = (const for node in tree.find_all(kinds) for const in node.find_all(nodes.Const))
    found = {const.value for const in consts if isinstance(const.value, str)}
    return frozenset(text for text in found if text.strip() and text not in _ROLES)
