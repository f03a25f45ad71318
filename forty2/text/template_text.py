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


@functools.lru_cache(maxsize=16)
def inspected_texts(template: str) -> frozenset[str]:
    """Find the texts that a template looks for, splits at or replaces."""
    template = _GENERATION_TAG.sub("", template)
    try:
        tree = jinja2.Environment(extensions=["jinja2.ext.loopcontrols", "jinja2.ext.do"]).parse(
            template
        )
    except jinja2.TemplateError:
        return frozenset([""])  # found in every text
    found: set[str] = set()
    own = [part for part in tree.body if not isinstance(part, nodes.Macro) or part.name != CLOCK]
    for part in own:
        for node in part.find_all((nodes.Compare, nodes.Call, nodes.Filter, nodes.Test)):
            found |= {c.value for c in node.find_all(nodes.Const) if isinstance(c.value, str)}
    return frozenset(text for text in found if text.strip() and text not in _ROLES)
