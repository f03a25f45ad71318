"""Arguments of the package by the names of their command-line options.

Below the command line, a message names an argument in backticks: `resume=True`. Only here it becomes
`--resume`, if the command at hand has that option. "Start again with `resume=True`" is said where any
command may stop, and "in a recipe, else `template`" where a recipe has a key for it, too.
"""

from __future__ import annotations

import re
from collections.abc import Collection

import click

ARGUMENTS = (
    "adapter",
    "api_key_env",
    "chats",
    "early_stop",
    "force",
    "grid",
    "judge_model",
    "kl_weight",
    "lr",
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
_OTHER_NAMES = {
    "kl_weight": "lambda",
    "mapping": "map",
    "overrides": "set",
    "template": "chat-template",
}
_ARGUMENT = re.compile(rf"`({'|'.join(ARGUMENTS)})(?:=([^`\n]*))?`")
_ELSEWHERE = {
    "api_key_env": "benchmark judge",
    "chats": "init",
    "early_stop": "sweep",
    "force": "runs remove",
    "grid": "sweep",
    "judge_model": "benchmark judge",
    "kl_weight": "run",
    "lr": "run",
    "mapping": "init",
    "pack": "data prepare",
    "pairs": "init",
    "repeat": "data mix",
    "resume": "run",
    "reuse": "run",
    "run_untrusted_code": "benchmark humaneval",
    "seeds": "sweep",
    "size": "data mix",
    "sort": "runs list",
    "thumbs": "init",
    "train_on": "data prepare",
}
"""Command that has the option, for messages in commands that do not."""
_IN_WORDS = {"out": "folder", "run_dir": "folder", "model": "RUN|MODEL"}
"""Words for arguments that have no option in a command: it takes them by position, or has none."""
_START_AGAIN = "start again with `resume=True`"
_GO_ON = "go on with `resume=True`"
_ELSE = re.compile(rf"in a recipe, else `({'|'.join(ARGUMENTS)})(?:=[^`\n]*)?`")


def flag(argument: str) -> str:
    """Return the option of an argument, e.g. `--run-dir` of `run_dir`."""
    return "--" + _OTHER_NAMES.get(argument, argument).replace("_", "-")


def command_at_hand() -> click.Command | None:
    """Return the command that runs, or that has just ended with an error; None: there is none."""
    context = click.get_current_context(silent=True)
    if context is None:
        return None
    if isinstance(context.command, click.Group) and context.invoked_subcommand:
        return context.command.get_command(context, context.invoked_subcommand)
    return context.command


def with_flags(message: str) -> str:
    """Replace the arguments that a message names in backticks by options of the command at hand.

    Where it has no such option, the message names the command that has it, or leaves it out.
    """
    command = command_at_hand()
    if command is not None:
        options = {option for parameter in command.params for option in parameter.opts}
        if flag("resume") not in options:
            message = message.replace(_START_AGAIN, "start again")
            if command.name == "train":  # it goes on by itself
                message = message.replace(_GO_ON, "go on with the same command")
                message = message.replace("`resume=True`", "the same command")
        message = _ELSE.sub(
            lambda found: found[0] if flag(found[1]) in options else "in the recipe", message
        )
        return _ARGUMENT.sub(lambda found: _as_typed(found, options), message)
    return _ARGUMENT.sub(_as_typed, message)


def _as_typed(found: re.Match[str], options: Collection[str] | None = None) -> str:
    """Write an argument, with its value if it has one, as the command line takes it.

    Args:
        options: of the command at hand; None: any.
    """
    argument, value = found[1], found[2]
    typed = flag(argument) + ("" if value in (None, "True") else f" {value}")
    if options is None or flag(argument) in options:
        return typed
    if argument in _ELSEWHERE:
        return f"forty2 {_ELSEWHERE[argument]} {typed}"
    return _IN_WORDS.get(argument, typed)
