"""Options of the commands that ask a chat model."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import click

from forty2.cli.shared_options import Command, Decorator, combined

if TYPE_CHECKING:
    from forty2.inference.chat_endpoint import Role


def limits_of_requests(*, budget: bool = True) -> Decorator:
    """Add how fast a chat model is asked and, with `budget`, what it may cost; the command gets `limits`."""

    def decorate(function: Command) -> Command:
        @functools.wraps(function)
        def with_limits(
            *,
            at_once: int,
            per_minute: float | None,
            timeout: float,
            max_tokens_total: int | None = None,
            max_cost: float | None = None,
            price_in: float | None = None,
            price_out: float | None = None,
            **others: object,
        ) -> None:
            from forty2.failures.asking import Limits

            limits = Limits(
                at_once=at_once,
                per_minute=per_minute,
                timeout=timeout,
                tokens=max_tokens_total,
                cost=max_cost,
                price_in=price_in,
                price_out=price_out,
            )
            function(limits=limits, **others)

        return combined(*_LIMITS, *(_BUDGET if budget else ()))(with_limits)

    return decorate


def chat_model(
    role: Role, *, builtin: bool = False, required: bool = False, budget: bool = True
) -> Decorator:
    """Add --ROLE, --ROLE-model, a key's variable, and limits; the command gets ROLE and `limits`.

    ROLE is a `ChatModel`, None where none was named, or "builtin" where the command has generators.
    """

    def decorate(function: Command) -> Command:
        @functools.wraps(function)
        def with_model(
            *,
            chat: str | None,
            chat_model: str,
            api_key_env: str | None,
            **others: object,
        ) -> None:
            from forty2.failures.chat_models import ChatModel

            model: ChatModel | str | None = chat
            if chat is not None and not (builtin and chat == "builtin"):
                model = ChatModel(name=chat, model=chat_model, api_key_env=api_key_env, role=role)
            function(**{role: model}, **others)

        limited = limits_of_requests(budget=budget)
        return combined(*_server(role, builtin, required), limited)(with_model)

    return decorate


def _server(role: Role, builtin: bool, required: bool) -> list[Decorator]:
    return [
        click.option(
            f"--{role}",
            "chat",
            required=required,
            metavar="URL|local:MODEL" + ("|builtin" if builtin else ""),
            help="OpenAI-compatible server, http://HOST/v1; or local:MODEL, a model that is served on "
            "this machine while the command runs"
            + ("; or builtin, the generators of the test set." if builtin else "."),
        ),
        click.option(
            f"--{role}-model",
            "chat_model",
            default="default",
            show_default=True,
            help="Model on that server.",
        ),
        click.option("--api-key-env", help="Environment variable that holds the server's key."),
    ]


_POSITIVE = click.FloatRange(0, min_open=True)
_LIMITS = [
    click.option(
        "--at-once",
        default=4,
        show_default=True,
        type=click.IntRange(1),
        help="Most requests under way at a time.",
    ),
    click.option("--per-minute", type=_POSITIVE, help="Most requests begun in a minute."),
    click.option(
        "--timeout",
        default=120.0,
        show_default=True,
        type=_POSITIVE,
        help="Seconds without a byte after which a request is sent again.",
    ),
]
_BUDGET = [
    click.option(
        "--max-tokens-total",
        type=click.IntRange(1),
        help="Budget in tokens, of prompts and replies together.",
    ),
    click.option("--max-cost", type=_POSITIVE, help="Budget in money; needs both prices."),
    click.option(
        "--price-in", type=click.FloatRange(0), help="Price of a million tokens of prompts."
    ),
    click.option(
        "--price-out", type=click.FloatRange(0), help="Price of a million tokens of replies."
    ),
]
