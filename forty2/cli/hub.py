"""`forty2 push` and `forty2 pull`."""

from __future__ import annotations

from pathlib import Path
from shlex import quote

import click

from forty2.cli import shared_options
from forty2.cli.echo import echo
from forty2.cli.errors import warn
from forty2.report.units import file_size


@click.command("push")
@click.argument("run")
@click.argument("name", metavar="OWNER/NAME")
@click.option(
    "--model",
    "-m",
    help="Name on the hub of what it was made from. Default: the base that the run names.",
)
@click.option("--private", is_flag=True, help="Let only its owner see it, if it is new on the hub.")
@click.option("--dry-run", is_flag=True, help="Only say what would be sent; the hub is not asked.")
@shared_options.yes
def push_command(
    run: str, name: str, model: str | None, private: bool, dry_run: bool, yes: bool
) -> None:
    """Send a model or an adapter to the Hugging Face hub, after asking.

    RUN is a run, whose fused model is sent; RUN/PHASE, whose adapter is sent; or a folder of a fused model
    or an adapter. A card with data, recipe and results goes along. No training rows, logs or paths of this
    machine do.

    All is published in one commit or not at all. After a cut connection, the same command sends only what
    the hub lacks. Log in first: hf auth login.
    """
    from forty2.export.push import look_up, plan_push, send

    push = plan_push(run, name, model=model)
    echo(f"from      {push.folder}")
    for file in push.files:
        echo(f"sends     {file_size(file.size):>8}  {file.name}")
    for left in push.left_out:
        echo(f"stays                {left}")
    if push.own_card:
        echo("note      README.md is your own text; it is sent unchanged")
    if push.origin.base.hub is None:
        warn("the card names no base on the hub; give it with `model=OWNER/BASE`")
    if dry_run:
        echo(f"would send {len(push.files)} files, {file_size(push.size)}, to {name}")
        return
    repository = look_up(push, private=private)
    for removed in repository.removed:
        echo(f"removes              {removed}, of an earlier push")
    new = "" if repository.sha is not None else ", private" if private else ", public"
    question = f"Send {len(push.files)} files, {file_size(push.size)}, to {name}{new}?"
    if not (yes or shared_options.confirmed(question, "sent", "send")):
        return
    pushed = send(push, repository, private=private)
    echo(f"{'published' if pushed.changed else 'unchanged'} {pushed.url}")
    if not pushed.changed:
        echo("          the hub had every file already")
    echo(f"next      forty2 pull {name}")


@click.command("pull")
@click.argument("name", metavar="OWNER/NAME")
@shared_options.out_option(
    help="Folder to write. Default: fused_models/NAME, or adapters/NAME for an adapter."
)
@click.option("--replace", is_flag=True, help="Write over a model or adapter; never over a run.")
@click.option(
    "--trust-remote-code",
    is_flag=True,
    help="Download the model's own Python code, and run it to see that it loads.",
)
def pull_command(name: str, out: Path | None, replace: bool, trust_remote_code: bool) -> None:
    """Download a model or an adapter from the Hugging Face hub.

    Only safetensors, JSON and other plain files are taken: no pickles, and no Python code unless you say
    --trust-remote-code. The folder appears when everything is there and could be loaded. After a cut
    connection, the same command goes on.
    """
    from forty2.export.pull import pull

    pulled = pull(name, out, replace=replace, trust_remote_code=trust_remote_code)
    echo(f"{pulled.kind:<9} {pulled.path} ({pulled.files} files, {file_size(pulled.size)})")
    echo(f"commit    {pulled.commit}")
    for left in pulled.left_out:
        echo(f"left out  {left}")
    folder = quote(str(pulled.path))
    if pulled.kind == "model":
        echo(f"next      forty2 chat {folder}")
    else:
        base = quote(pulled.base) if pulled.base is not None else "BASE"
        echo(f"next      forty2 chat {base} --adapter {folder}")
