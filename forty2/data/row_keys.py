"""The keys of rows, by what they hold. Every reader and parser takes them from here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from itertools import islice

CONVERSATION = ("messages", "conversations", "conversation")
SIDES = (
    ("chosen", "rejected"),
    ("chosen_response", "rejected_response"),
    ("preferred_output", "non_preferred_output"),
    ("preferred_completion", "non_preferred_completion"),
)
"""Keys of the preferred and the dispreferred response."""
REJECTED_BESIDE = ("rejected_response", "rejected_message")
"""Keys of a response that is worse than the last turn of the row's messages (ms-swift, OpenPipe)."""
VERDICT = ("label", "kto_tag")
"""Keys that say whether the response is a good one."""
WEIGHT = "weight"
"""Key of a row's average uses per epoch."""
EXCHANGES = (
    ("prompt", "completion"),
    ("instruction", "output"),
    ("question", "answer"),
    ("query", "response"),
    ("input", "output"),
)
"""Keys of a prompt and the answer that belongs to it."""
QUESTIONS = tuple(question for question, _ in EXCHANGES)
ANSWERS = tuple(dict.fromkeys(answer for _, answer in EXCHANGES))
MATERIAL = ("input", "context")
"""Keys of a text that an instruction or a question is about."""
SYSTEM = ("system", "system_prompt", "system_message")
TOOLS = ("tools", "functions", "available_tools")
HISTORY = "history"
LEARNED = {
    "train": True,
    "training": True,
    "trainable": True,
    "loss": True,
    "loss_weight": True,
    "loss_mask": True,
    "weight": True,
    "masked": False,
}
"""Keys of a message, or of a whole row, that say whether it is learned, and the value that says it is.

`weight` is OpenAI's and mistral-finetune's, `train` and `training` are axolotl's, `loss`,
`loss_weight` and `loss_mask` are ms-swift's and XTuner's, `masked` is torchtune's.
"""
OTHER_VERDICTS = {
    **dict.fromkeys(("desirable", "preferred", "accepted", "liked", "good", "thumbsup"), True),
    **dict.fromkeys(("isdesirable", "ispreferred", "isaccepted", "isgood", "iscorrect"), True),
    **dict.fromkeys(("undesirable", "disliked", "bad", "isbad", "thumbsdown"), False),
}
"""Other keys of verdicts, as `plain` writes them, and the value that says that a response is good."""
OF_A_MESSAGE = (
    *("parent_id", "message_id", "message_tree_id", "conversation_id", "dialogue_id", "turn_id"),
    *("reply_to", "role", "speaker"),
)
"""Keys of a row that is one message of a conversation."""

RESPONSES = tuple(key for pair in SIDES for key in pair) + REJECTED_BESIDE
TEXTS = frozenset(("text", *QUESTIONS, *ANSWERS, *MATERIAL, *SYSTEM, *RESPONSES))
"""Keys that may hold a text, or messages."""
LISTS = frozenset((*CONVERSATION, *TOOLS, HISTORY))
"""Keys that hold nothing but lists and objects."""
VALUES = frozenset((*VERDICT, *LEARNED))
"""Keys that may hold numbers and truth values."""
_TRUTHS = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
ALL = TEXTS | LISTS | VALUES


def truth_of(value: object) -> bool | None:
    """Return what a truth value, a one or zero, or a text of one says; None: it is none of these."""
    return _TRUTHS.get(str(value).lower())


@lru_cache(maxsize=4096)
def plain(key: str) -> str:
    """Return a key in lower case and without separators, to compare it with known keys.

    `systemPrompt` and `System-Prompt` are `systemprompt`, as `system_prompt` is.
    """
    return re.sub(r"[\W_]+", "", key).casefold()


def is_blank(value: object) -> bool:
    """Return whether a value says nothing: null, an empty list or object, or a text of blanks."""
    return value is None or value in ([], {}) or (isinstance(value, str) and not value.strip())


def named_keys(row: Mapping[str, object]) -> str:
    """Name the first keys of a row, shortened to fit into a message."""
    names = (str(key) if str(key).isprintable() else ascii(key) for key in islice(row, 20))
    return ", ".join(name[:40] for name in names) + ", ..." * (len(row) > 20) or "no keys"
