"""Held-out prompts with the replies of the base and of the last stage, for the end of a run."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from forty2.benchmark.results import Stage

_LONGEST = 200
"""Characters of a prompt or a reply that are shown: three lines of eighty columns."""


def before_and_after(stages: Sequence[Stage], most: int) -> str:
    """Format the replies of the first and of the last stage to the same held-out prompts.

    Args:
        stages: of a run, the base first.
        most: largest number of prompts. They are the first ones, so that nobody picked them for their
            replies.

    Returns:
        "" if no prompt was answered before and after.
    """
    if len(stages) < 2 or any("held_out" not in stage.results for stage in stages):
        return ""
    replies = [
        [item.record for item in stage["held_out"].items if item.record["kind"] == "reply"]
        for stage in (stages[0], stages[-1])
    ]
    if not replies[0]:
        return ""
    lines = ["The first of your held-out prompts, before and after:"]
    for before, after in list(zip(*replies, strict=True))[:most]:
        lines += ["", _shortened(before["prompt"])]
        for title, text in (("before", before["reply"]), ("after", after["reply"])):
            lines.append(f"  {title:<10}{_shortened(text)}")
        if before.get("expected"):  # earlier releases recorded none
            lines.append(f"  {'expected':<10}{_shortened(before['expected'])}")
    return "\n".join(lines)


def _shortened(text: str) -> str:
    """Write a text in a line; the rest of a long one becomes an ellipsis."""
    return textwrap.shorten(text, _LONGEST, placeholder=" …") or "(nothing)"
