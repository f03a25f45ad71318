"""Arguments of the package by the names of their command-line options.

Below the command line, a message names an argument in backticks: `resume=True`. Only here it becomes
`--resume`.
"""

from __future__ import annotations

import re

ARGUMENTS = (
    "adapter",
    "api_key_env",
    "chats",
    "early_stop",
    "force",
    "grid",
    "judge_model",
    "mapping",
    "model",
    "out",
    "overrides",
    "pack",
    "pairs",
    "repeat",
    "replace",
    "resume",
    "reuse",
    "run_dir",
    "run_untrusted_code",
    "seeds",
    "size",
    "sort",
    "system",
    "system_turn",
    "template",
    "thumbs",
    "train_on",
    "trust_remote_code",
)
"""Arguments that messages name."""
_OTHER_NAMES = {"mapping": "map", "overrides": "set", "template": "chat-template"}
_ARGUMENT = re.compile(rf"`({'|'.join(ARGUMENTS)})(?:=([^`\n]*))?`")


def flag(argument: str) -> str:
    """Return the option of an argument, e.g. `--run-dir` of `run_dir`."""
    return "--" + _OTHER_NAMES.get(argument, argument).replace("_", "-")


def with_flags(message: str) -> str:
    """Replace the arguments that a message names in backticks by their options."""
    return _ARGUMENT.sub(_as_typed, message)


def _as_typed(found: re.Match[str]) -> str:
    """Write an argument, with its value if it has one, as the command line takes it."""
    value = found[2]
    return flag(found[1]) + ("" if value in (None, "True") else f" {value}")
