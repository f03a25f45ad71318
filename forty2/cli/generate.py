"""`forty2 generate`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from forty2.cli import shared_options

if TYPE_CHECKING:
    from forty2.model.chat_template import TemplateSettings


@click.command("generate")
@shared_options.model_and_adapter()
@click.option(
    "--prompt", "-p", required=True, help="The user's message. `-` reads it from standard input."
)
@click.option("--system", help="A system message before it.")
@click.option(
    "--max-tokens",
    default=256,
    show_default=True,
    type=click.IntRange(1),
    help="Longest answer in tokens.",
)
@click.option(
    "--temperature",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0),
    help="Sampling temperature. With 0, always the likeliest token.",
)
@shared_options.seed_option(type=click.IntRange(0), help="Seed of the sampling.")
@shared_options.template
@shared_options.trust_remote_code
def generate_command(
    model: str,
    adapter: str | None,
    prompt: str,
    system: str | None,
    max_tokens: int,
    temperature: float,
    seed: int,
    template: TemplateSettings | None,
    trust_remote_code: bool,
) -> None:
    """Answer a prompt through the model's chat template."""
    from forty2.inference.generation import stream_reply
    from forty2.model.loading import load
    from forty2.text.encoder import Encoder

    text = sys.stdin.read() if prompt == "-" else prompt
    loaded = load(model, adapter, template=template, trust_remote_code=trust_remote_code)
    messages = [{"role": "system", "content": system}] if system is not None else []
    ids = Encoder(loaded.tokenizer).prompt([*messages, {"role": "user", "content": text}])
    for piece in stream_reply(
        loaded, ids, max_tokens=max_tokens, temperature=temperature, seed=seed
    ):
        click.echo(piece, nl=False)
    click.echo()
