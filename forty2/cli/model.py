"""`forty2 model`: fetch, import and describe models."""

from __future__ import annotations

from pathlib import Path

import click

from forty2.cli import shared_options
from forty2.cli.echo import echo
from forty2.cli.errors import Group
from forty2.cli.json_output import echo_json


@click.group("model", cls=Group)
def model_command() -> None:
    """Fetch, import and describe models."""


@model_command.command("fetch")
@click.argument("name", default="smollm2")
def fetch_command(name: str) -> None:
    """Download a model and print its folder.

    NAME is a hub name, or smollm2 for the starter model.
    """
    from forty2.model.loading import resolve_model

    echo(resolve_model(name))


@model_command.command("import")
@click.argument("gguf", type=shared_options.PATH)
@click.option("--out", required=True, type=shared_options.PATH, help="Model folder to write.")
def import_command(gguf: Path, out: Path) -> None:
    """Convert a GGUF file to a model folder."""
    from forty2.model.gguf.importing import import_gguf

    echo(import_gguf(gguf, out))


@model_command.command("memory")
def memory_command() -> None:
    """Print the estimated memory of training by model size and precision.

    In GB, for LoRA with the recipe's defaults on a GPU; in brackets the smallest Mac, of 8 to 64 GB,
    of whose memory it is at most three quarters. First with grad_checkpoint: true, then with all
    values of the forward pass stored. `forty2 plan` estimates it for a recipe.
    """
    from forty2.runs.memory import memory_table

    click.echo(memory_table(), nl=False)


@model_command.command("info")
@click.argument("model", default="smollm2")
@shared_options.as_json
@shared_options.trust_remote_code
def info_command(model: str, as_json: bool, trust_remote_code: bool) -> None:
    """Describe a model, and the device and BLAS that it would run on."""
    from forty2 import machine
    from forty2.model.loading import load, model_facts

    facts = (
        model_facts(load(model, trust_remote_code=trust_remote_code, lazy=True)) | machine.facts()
    )
    if as_json:
        echo_json("model.info", {"facts": facts})
        return
    for key, value in facts.items():
        echo(f"{key:<14} {value}")
