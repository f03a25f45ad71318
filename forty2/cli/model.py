"""`forty2 model`: fetch, import and describe models."""

from __future__ import annotations

from pathlib import Path

import click

from forty2.cli import shared_options


@click.group("model")
def model_command() -> None:
    """Fetch, import and describe models."""


@model_command.command("fetch")
@click.argument("name", default="smollm2")
def fetch_command(name: str) -> None:
    """Download a model and print its folder.

    NAME is a hub name, or smollm2 for the starter model.
    """
    from forty2.model.loading import resolve_model

    click.echo(resolve_model(name))


@model_command.command("import")
@click.argument("gguf", type=shared_options.PATH)
@click.option("--out", required=True, type=shared_options.PATH, help="Model folder to write.")
def import_command(gguf: Path, out: Path) -> None:
    """Convert a GGUF file to a model folder."""
    from forty2.model.gguf.importing import import_gguf

    click.echo(import_gguf(gguf, out))


@model_command.command("info")
@click.argument("model", default="smollm2")
@shared_options.trust_remote_code
def info_command(model: str, trust_remote_code: bool) -> None:
    """Describe a model, and the device and BLAS that it would run on."""
    from forty2 import machine
    from forty2.model.loading import load, model_facts

    facts = (
        model_facts(load(model, trust_remote_code=trust_remote_code, lazy=True)) | machine.facts()
    )
    for key, value in facts.items():
        click.echo(f"{key:<14} {value}")
