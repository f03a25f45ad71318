"""`forty2 serve`."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from forty2.cli import shared_options
from forty2.cli.echo import echo
from forty2.cli.errors import warn

if TYPE_CHECKING:
    from forty2.model.chat_template import TemplateSettings


@click.command("serve")
@shared_options.runs_model
@click.argument("target", metavar="RUN|MODEL")
@click.option("--adapter", "-a", help="Adapter folder or run folder, if RUN|MODEL is a model.")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen at. The default is this machine alone; 0.0.0.0 is every network.",
)
@click.option(
    "--port",
    default=8042,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Port to listen at; 0 for any that is free.",
)
@click.option(
    "--max-tokens",
    default=4096,
    show_default=True,
    type=click.IntRange(1),
    help="Longest reply that a request may ask for, in tokens.",
)
@click.option(
    "--max-requests",
    default=32,
    show_default=True,
    type=click.IntRange(1),
    help="Requests that are answered or wait for it; others are refused.",
)
@shared_options.template
@shared_options.trust_remote_code
def serve_command(
    target: str,
    adapter: str | None,
    host: str,
    port: int,
    max_tokens: int,
    max_requests: int,
    template: TemplateSettings | None,
    trust_remote_code: bool,
) -> None:
    """Serve a run's models to programs, and on a page.

    RUN is a run (its base, each finished phase, and the fused model), or RUN/PHASE for the base and one
    phase. MODEL is a folder, a hub name or smollm2. Programs use it as they use OpenAI's API. Ctrl-C
    ends it.

    \b
    forty2 serve shop
    curl http://127.0.0.1:8042/v1/chat/completions -H "Content-Type: application/json" \\
      -d '{"model": "sft", "messages": [{"role": "user", "content": "Hi."}]}'
    """
    from forty2.serve.http_server import ModelServer
    from forty2.serve.origins import is_loopback
    from forty2.serve.sources import find_sources

    sources = find_sources(target, adapter, template)
    for note in sources.notes:
        warn(note)
    if not is_loopback(host):
        warn(
            "whoever reaches this machine over the network can use the models: there is no password"
        )
    try:
        server = ModelServer(
            sources,
            host=host,
            port=port,
            trust_remote_code=trust_remote_code,
            most_tokens=max_tokens,
            most_requests=max_requests,
        )
        echo(f"models    {', '.join(sources.ids)}")
        echo(f"page      {server.url}")
        echo(f"programs  {server.url}v1")
        echo("Ctrl-C ends the server.")
        sys.stdout.flush()
        server.serve_forever(0.1)
    except KeyboardInterrupt:  # or SIGTERM
        # There is nothing to save. An ordinary exit would wait for the reply that is being written, and
        # what mlx cleans up when its thread ends can abort an interpreter that ends at the same time.
        sys.stdout.flush()
        os._exit(0)
