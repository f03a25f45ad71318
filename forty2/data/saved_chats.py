"""Conversations saved by hand: appended to training data, or added to a file of eval prompts."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from forty2.data.records import Message
from forty2.errors import DataError
from forty2.files import JsonObject, make_folder, owner_only, write_errors, write_json


def save_chat(messages: Sequence[Message], file: Path) -> str:
    """Add a conversation to a file; what is in the file stays.

    Args:
        messages: from a system or user turn to a reply.
        file: `.jsonl` for a row of training data, `.json` for an eval prompt, which is one message
            and the reply expected to it.

    Returns:
        What was done, in words; what is there already is not added again.

    Raises:
        DataError: the file is of another kind, the conversation does not fit one eval prompt, or a
            turn is empty.
    """
    file = Path(os.path.expanduser(file))
    if not any(message["role"] == "assistant" for message in messages):
        raise DataError("nothing to save yet: the conversation has no reply")
    if any(not message["content"].strip() for message in messages):
        raise DataError("a turn of the conversation is empty, which no row may have: take it back")
    with write_errors(file):
        make_folder(file.parent)
        if file.suffix == ".jsonl":
            new = _append_row(messages, file)
            return "added a row of training data" if new else "this row is there already"
        if file.suffix == ".json":
            name, new = _add_eval_prompt(messages, file)
            return f"added eval prompt {name}" if new else f"it is there already, as {name}"
    raise DataError(f"{file}: end the name in .jsonl (training data) or .json (eval prompts)")


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


def _add_eval_prompt(messages: Sequence[Message], file: Path) -> tuple[str, bool]:
    """Add a message and its reply to a file of eval prompts; return its id, and whether it is new."""
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
    added = (question["content"], answer["content"], before[0]["content"] if before else "")
    for name, text in prompts.items():
        if (text, outputs.get(name), systems.get(name, "")) == added:
            return name, False
    number = 1
    while (name := f"chat_{number}") in prompts:
        number += 1
    if before:
        systems = {**systems, name: before[0]["content"]}
    prompts[name], outputs[name] = question["content"], answer["content"]
    if systems:
        tree["system_prompt"] = systems
    write_json(file, tree)
    return name, True


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
