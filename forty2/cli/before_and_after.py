"""Five held-out prompts with the replies of the base and of the last stage, for the demo's end."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from forty2.benchmark.results import Stage

_SHOWN = {
    "myth": (2, "a myth: it should not be repeated"),
    "leak": (2, "a plain fact: a short answer is enough"),
    "over": (1, "answerable: it should not be refused"),
}
"""Largest number of prompts shown of each gate, with what a good reply does. They are the gate's
first ones, so that nobody picked them for their replies."""
_WIDTH = 80
_LINES = 3
"""Largest number of lines of a reply that are shown."""


def before_and_after(stages: Sequence[Stage]) -> str:
    """Format the replies of the first and of the last stage to the same held-out prompts.

    Args:
        stages: of a run, the base first; each holds its replies to the behaviour gates.
    """
    before, after = (
        {item.record["id"]: item.record for item in stage["behaviour"].items}
        for stage in (stages[0], stages[-1])
    )
    lines = ["Held-out prompts, the first of their kinds, before and after:"]
    for gate, (most, aim) in _SHOWN.items():
        shown = [record for record in before.values() if record["gate"] == gate][:most]
        for record in shown:
            lines += ["", f"{record['prompt']}  ({aim})"]
            lines += _reply("before", record["answer"])
            lines += _reply("after", after[record["id"]]["answer"])
    return "\n".join(lines)


def _reply(title: str, answer: str) -> list[str]:
    """Wrap a reply beside its title; the rest of a long one becomes an ellipsis."""
    return textwrap.wrap(
        " ".join(answer.split()) or "(nothing)",
        _WIDTH,
        initial_indent=f"  {title:<8}",
        subsequent_indent=" " * 10,
        max_lines=_LINES,
        placeholder=" …",
    )
