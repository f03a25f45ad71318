"""Conversations saved by hand: appended to training data, or added to a file of eval prompts."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path

from forty2.data.records import Message
from forty2.errors import DataError
from forty2.files import JsonObject, owner_only, write_errors, write_json


def save_chat(messages: Sequence[Message], file: Path, answer: str | None = None) -> str:
    """Add a conversation to a file; what is in the file stays.

    Args:
        messages: from a system or user turn to a reply.
        file: `.jsonl` for a row of training data, `.json` for an eval prompt, which is one message
            and the reply expected to it.
        answer: the right answer, in place of the last reply. An eval prompt then expects a reply that
            contains it, and one that asks the same already expects it from now on.

    Returns:
        What was done, in words; what is there already is not added again.

    Raises:
        DataError: the file is of another kind or its folder is missing, the conversation does not fit
            one eval prompt, or a turn is empty.
    """
    file = Path(os.path.expanduser(file))
    if not any(message["role"] == "assistant" for message in messages):
        raise DataError("nothing to save yet: the conversation has no reply")
    if answer is not None:
        messages = [*messages[:-1], {**messages[-1], "content": answer}]
    if any(not message["content"].strip() for message in messages):
        raise DataError("a turn of the conversation is empty, which no row may have: take it back")
    if file.suffix not in (".jsonl", ".json"):
        raise DataError(f"{file}: end the name in .jsonl (training data) or .json (eval prompts)")
    if not file.parent.is_dir():
        raise DataError(f"{file.parent}: no such folder")
    own = "the model's own reply" if answer is None else "your answer"
    with write_errors(file):
        if file.suffix == ".jsonl":
            new = _append_row(messages, file)
            return (
                f"added a row of training data, with {own}" if new else "this row is there already"
            )
        return _add_eval_prompt(messages, file, own, given=answer is not None)


def _append_row(messages: Sequence[Message], file: Path) -> bool:
    """Append a row; return False if the file has it already."""
    before = _text(file)
    lines = before.splitlines()
    try:
        fits = not lines or isinstance(json.loads(lines[-1]), dict)
    except ValueError:
        fits = False
    if not fits:
        raise DataError(f"{file}:{len(lines)}: is not a row of JSON Lines; save to another file")
    row = json.dumps({"messages": list(messages)}, ensure_ascii=False)
    if row in lines:
        return False
    gap = "\n" if before and not before.endswith("\n") else ""
    with open(file, "a", encoding="utf-8", opener=owner_only) as rows:
        rows.write(f"{gap}{row}\n")
    return True


def _add_eval_prompt(messages: Sequence[Message], file: Path, own: str, *, given: bool) -> str:
    """Add a message and the reply to it to a file of eval prompts; return what was done.

    Args:
        own: whose reply it is, in words.
        given: a person gave it.
    """
    *before, question, answer = messages
    if any(message["role"] != "system" for message in before):
        raise DataError(
            "an eval prompt is one message and its reply, and this conversation is longer: save it "
            "to a .jsonl file, or begin anew"
        )
    tree = _eval_prompts(file)
    prompts, outputs = tree["prompts"], tree["expected_outputs"]
    systems = tree.get("system_prompt") or {}
    if isinstance(systems, str):
        systems = dict.fromkeys(prompts, systems)
    system, expected = before[0]["content"] if before else "", answer["content"]
    asked = (question["content"], system)
    same = [name for name, text in prompts.items() if (text, systems.get(name, "")) == asked]
    if same and outputs.get(same[0]) == expected:
        return f"it is there already, as {same[0]}"
    if same and not given:
        return f"{same[0]} asks this already and expects another reply, which stays"
    unused = (name for n in itertools.count(1) if (name := f"chat_{n}") not in prompts)
    name = same[0] if same else next(unused)
    if before:
        systems = {**systems, name: system}
    prompts[name], outputs[name] = question["content"], expected
    if systems:
        tree["system_prompt"] = systems
    if given:
        match = tree.get("match") or {}
        each = match if isinstance(match, dict) else dict.fromkeys(prompts, match)
        tree["match"] = {**each, name: "contains"}
    write_json(file, tree)
    return (
        f"eval prompt {name} expects {own} now"
        if same
        else f"added eval prompt {name}, which expects {own}"
    )


def _eval_prompts(file: Path) -> JsonObject:
    text = _text(file)
    if not text.strip():
        return {"form": "user", "prompts": {}, "expected_outputs": {}}
    try:
        tree = json.loads(text)
    except ValueError as error:
        raise DataError(f"{file}: is not JSON; save to another file") from error
    keys = ("prompts", "expected_outputs")
    if not (
        isinstance(tree, dict)
        and isinstance(tree.get("system_prompt", ""), str | dict)
        and all(isinstance(tree.get(key), dict) for key in keys)
    ):
        raise DataError(f"{file}: is no file of eval prompts; save to another file")
    if tree.get("form") == "full":
        raise DataError(f"{file}: holds whole strings (form: full); save to another file")
    return tree


def _text(file: Path) -> str:
    """Read a file; a missing one is empty."""
    try:
        return file.read_text("utf-8")
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: is not UTF-8 text; save to another file") from error
