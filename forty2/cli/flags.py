"""Arguments of the package by the names of their command-line options.

Below the command line, a message names an argument in backticks: `resume=True`. Only here it becomes
`--resume`, if the command at hand has that option. "To go on: `resume=True`" is said where any command
may stop, and becomes the whole command to type. "Start again with `resume=True`" is said where its
settings may have to change, and "in a recipe, else `template`" where a recipe has a key for it, too.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterator, Sequence

import click

from forty2.errors import redact

ARGUMENTS = (
    "adapter",
    "api_key_env",
    "chats",
    "disjoint_from",
    "doses",
    "early_stop",
    "force",
    "grid",
    "host",
    "judge_model",
    "k",
    "kl_weight",
    "lr",
    "mapping",
    "model",
    "original",
    "out",
    "overrides",
    "pack",
    "pairs",
    "port",
    "price_in",
    "price_out",
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
    "teacher",
    "teacher_model",
    "template",
    "thumbs",
    "train_on",
    "trust_remote_code",
)
"""Arguments that messages name."""
_OTHER_NAMES = {
    "doses": "dose",
    "kl_weight": "lambda",
    "mapping": "map",
    "overrides": "set",
    "template": "chat-template",
}
_ARGUMENT = re.compile(rf"`({'|'.join(ARGUMENTS)})(?:=([^`\n]*))?`")
_ELSEWHERE = {
    "api_key_env": "benchmark judge",
    "chats": "init",
    "disjoint_from": "failures testset",
    "doses": "ablate",
    "early_stop": "sweep",
    "force": "runs remove",
    "grid": "sweep",
    "host": "serve",
    "judge_model": "benchmark judge",
    "kl_weight": "run",
    "lr": "run",
    "mapping": "init",
    "original": "failures recover",
    "pack": "data prepare",
    "pairs": "init",
    "port": "serve",
    "price_in": "failures generate",
    "price_out": "failures generate",
    "repeat": "data mix",
    "resume": "run",
    "reuse": "run",
    "run_untrusted_code": "benchmark humaneval",
    "seeds": "sweep",
    "size": "data mix",
    "sort": "runs list",
    "teacher": "failures generate",
    "teacher_model": "failures generate",
    "thumbs": "init",
    "train_on": "data prepare",
}
"""Command that has the option, for messages in commands that do not."""
_IN_WORDS = {"out": "folder", "run_dir": "folder", "model": "RUN|MODEL"}
"""Words for arguments that have no option in a command: it takes them by position, or has none."""
TYPED = "forty2.typed"
"""Key of a context's `meta` under which the words typed after `forty2` are kept."""
_ONLY_TO_BEGIN = ("reuse",)
"""Arguments that a run takes when it begins, and not when it goes on."""
_GO_ON_BY_THEMSELVES = (
    "train",
    "failures find",
    "failures label",
    "failures generate",
    "failures score",
)
"""Commands that go on after a stop without an option."""
_TO_GO_ON = re.compile(r"(to go on[^:`\n]*): `resume=True`((?: `overrides=[^`\n]*`)*)")
_OVERRIDE = re.compile(r"`overrides=([^`\n]*)`")
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


def goes_on() -> bool:
    """Return whether the command at hand can go on after a stop; also if no command is at hand."""
    command = command_at_hand()
    if command is None or _goes_on_by_itself():
        return True
    return any(flag("resume") in parameter.opts for parameter in command.params)


def _goes_on_by_itself() -> bool:
    """Return whether the command at hand goes on after a stop without an option."""
    context = click.get_current_context(silent=True)
    if context is None:
        return False
    names = [context.invoked_subcommand] if isinstance(context.command, click.Group) else []
    while context is not None:
        names.append(context.info_name or context.command.name)
        context = context.parent
    path = " ".join(filter(None, reversed(names)))
    return any(f" {path}".endswith(f" {name}") for name in _GO_ON_BY_THEMSELVES)


def with_flags(message: str) -> str:
    """Replace the arguments that a message names in backticks by options of the command at hand.

    Where it has no such option, the message names the command that has it, or leaves it out.
    """
    command = command_at_hand()
    if command is not None:
        options = {option for parameter in command.params for option in parameter.opts}
        message = _TO_GO_ON.sub(lambda found: _with_command(found, options), message)
        if flag("resume") not in options:
            message = message.replace(_START_AGAIN, "start again")
            if _goes_on_by_itself():
                message = message.replace(_GO_ON, "go on with the same command")
                message = message.replace("`resume=True`", "the same command")
        message = _ELSE.sub(
            lambda found: found[0] if flag(found[1]) in options else "in the recipe", message
        )
        return _ARGUMENT.sub(lambda found: _as_typed(found, options), message)
    return _ARGUMENT.sub(_as_typed, message)


def _with_command(found: re.Match[str], options: Collection[str]) -> str:
    """Write the command to type in place of the arguments with which a stopped one goes on.

    It is left to the arguments where another program started several processes of the command.
    """
    from forty2.training.processes import launched  # imports mlx

    context = click.get_current_context(silent=True)
    typed = context.meta.get(TYPED, ()) if context is not None else ()
    if not typed or not goes_on() or launched():
        return found[0]
    added = [word for value in _OVERRIDE.findall(found[2]) for word in (flag("overrides"), value)]
    if flag("resume") in options and flag("resume") not in typed:
        added.append(flag("resume"))
    words = list(_to_repeat(typed))
    end = words.index("--") if "--" in words else len(words)
    return f"{found[1]}: {redact(shlex.join(['forty2', *words[:end], *added, *words[end:]]))}"


def _to_repeat(typed: Sequence[str]) -> Iterator[str]:
    """Yield the words of a command without options that only begin a run."""
    words = iter(typed)
    for word in words:
        option, equals, _ = word.partition("=")
        if option not in map(flag, _ONLY_TO_BEGIN):
            yield word
        elif not equals:
            next(words, None)


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
