"""What a teacher is asked for, and how its reply is read: a JSON object of a fixed form, or nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from jsonschema import Draft202012Validator

from forty2.data.record_texts import text_of
from forty2.data.records import Message
from forty2.errors import DataError
from forty2.failures.answers import json_values
from forty2.failures.folder import Item
from forty2.failures.verifiers import parse_verifier
from forty2.files import JsonObject

SHOWN = 5
"""Most items that a teacher is shown for one question."""
LONGEST = 2000
"""Characters of a text that a teacher is shown; a longer one is cut."""
_KINDS = ("number", "exact", "choice")
"""Verifiers that any teacher may write; of the others, those that it is shown."""
QUESTION = """You write training examples for a language model.{about}

Here are {count} questions, one a line, each with a right answer and a rule that checks answers where \
there is one.
{examples}
{system}
Write one new question of the same kind that is harder than these, and its right answer. Neither copy nor \
reword a question above. Reply with one JSON object and nothing else:
{{"question": "…", "answer": "…", "verifier": …}}
"answer" is the whole reply that the model should give, with its working if that helps, and its result at \
the end. "verifier" checks the result, in the form of a rule above, or as {{"kind": "number", "answer": 12}}, \
{{"kind": "exact", "answer": "a short text"}} or {{"kind": "choice", "answer": "B", "choices": {{"A": "…", \
"B": "…"}}}}. Write null where no rule can tell."""
_ABOUT = " The questions are about: {}."
_SYSTEM = """
Each is asked after this system message, which also stands before the new question:
{}
"""
LABEL = """Some texts are to be named. The name must tell them from others that look alike.

[Texts to be named]
{inside}

[Other texts]
{outside}

What do the texts to be named have in common that the others do not have? Answer in at most ten words, \
as one JSON object and nothing else: {{"label": "…"}}"""


def _validator(properties: dict[str, object], required: list[str]) -> Draft202012Validator:
    return Draft202012Validator(
        {
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": False,
        }
    )


_TEXT = {"type": "string", "pattern": r"\S", "maxLength": 20_000}
_QUESTION_FORM = _validator(
    {
        "question": _TEXT,
        "answer": {"anyOf": [_TEXT, {"type": "number"}]},
        "verifier": {"type": ["object", "null"]},
    },
    ["question", "answer"],
)
_LABEL_FORM = _validator({"label": _TEXT}, ["label"])


class Proposal(NamedTuple):
    """A question that a teacher made."""

    messages: tuple[Message, ...]
    reply: str
    verifier: JsonObject | None
    reference: str | None
    """A right reply for a judge; None: the reply is all that is known."""
    source: str
    """Name of the teacher, or of the built-in question."""


def proposal_prompt(label: str, items: Sequence[Item]) -> str:
    """Return what a teacher is asked for one question.

    Args:
        label: what the questions are about; "": not known.
        items: questions of the kind; the new one gets the first one's system message.
    """
    examples = "\n".join(json.dumps(_shown(item), ensure_ascii=False) for item in items)
    system = _system(items[0])
    return QUESTION.format(
        about=_ABOUT.format(label.rstrip(".")) if label else "",
        count=len(items),
        examples=examples,
        system="" if system is None else _SYSTEM.format(system["content"]),
    )


def parse_proposal(said: str, items: Sequence[Item], source: str) -> Proposal | str:
    """Read a teacher's question; or return the reason why that cannot be done.

    Args:
        items: those of the prompt.
        source: name of the teacher.
    """
    found = _object(said, _QUESTION_FORM)
    if isinstance(found, str):
        return found
    verifier = found.get("verifier")
    shown = {item.verifier["kind"] for item in items if item.verifier is not None}
    if verifier is not None:
        try:
            kind = parse_verifier(verifier, "").kind
        except DataError:
            return "verifier not readable"
        if kind not in {*_KINDS, *shown}:
            return "verifier not readable"
    system = _system(items[0])
    question: Message = {"role": "user", "content": found["question"].strip()}
    messages = (question,) if system is None else (system, question)
    return Proposal(messages, str(found["answer"]).strip(), verifier, None, source)


def label_prompt(inside: Sequence[str], outside: Sequence[str]) -> str:
    """Return what a teacher is asked for a label."""
    return LABEL.format(inside=_listed(inside), outside=_listed(outside))


def parse_label(said: str) -> str:
    """Read a teacher's label; "" if there is none."""
    found = _object(said, _LABEL_FORM)
    return "" if isinstance(found, str) else str(found["label"])


def _object(said: str, form: Draft202012Validator) -> dict[str, Any] | str:
    """Return the one JSON object of a reply, or the reason why it is of no use."""
    values = json_values(said)
    if len(values) != 1 or not isinstance(values[0], dict):
        return "no JSON object"
    try:  # NaN and halves of characters are no JSON that can be written again
        json.dumps(values[0], ensure_ascii=False, allow_nan=False).encode()
        fits = form.is_valid(values[0])
    except (ValueError, RecursionError):
        fits = False
    return dict(values[0]) if fits else "not in the schema"


def _shown(item: Item) -> JsonObject:
    """Return what a teacher sees of an item."""
    asked = [turn for turn in item.messages if turn["role"] != "system"]
    shown: JsonObject = {"question": _cut(text_of(asked))}
    if item.reference is not None:
        shown["answer"] = _cut(item.reference)
    if item.verifier is not None and len(json.dumps(item.verifier)) <= LONGEST:
        shown["verifier"] = item.verifier
    return shown


def _system(item: Item) -> Message | None:
    first = item.messages[0]
    return first if first["role"] == "system" else None


def _listed(texts: Sequence[str]) -> str:
    return "\n".join(json.dumps(_cut(text), ensure_ascii=False) for text in texts)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
