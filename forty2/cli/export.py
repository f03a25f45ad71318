"""`forty2 export`: models for other programs."""

from __future__ import annotations

import re
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

import click

from forty2.cli import shared_options
from forty2.cli.echo import echo
from forty2.cli.errors import Group, warn
from forty2.cli.flags import with_flags
from forty2.cli.progress_bars import ProgressBars

if TYPE_CHECKING:
    from forty2.model.chat_template import TemplateSettings


TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
"""Types of matrices, as `forty2.export.gguf.exporting` has them; that module is not for --help."""


class _Type(click.Choice[str]):
    """Type of the matrices; one of llama.cpp's K-quants is refused with how to make it."""

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if re.fullmatch(r"i?q\d_(k|k_[sml]|xxs|xs|s|m|nl)", value.lower()):
            self.fail(
                f"{value} is made by llama.cpp's own tool from an f16 file: "
                f"llama-quantize F16.gguf OUT.gguf {value.upper()}",
                param,
                ctx,
            )
        return super().convert(value, param, ctx)


_base = click.option(
    "--model", "-m", help="Base model. Default: the one that the adapter's run or folder names."
)


@click.group("export", cls=Group)
def export_command() -> None:
    """Write a model for other programs."""


@export_command.command("gguf")
@click.argument("target", metavar="MODEL|RUN")
@click.option("--adapter", "-a", help="Adapter folder or run folder, if MODEL|RUN is a model.")
@click.option("--out", "-o", required=True, type=shared_options.PATH, help="File to write.")
@click.option(
    "--type",
    "type_",
    type=_Type(TYPES, case_sensitive=False),
    default="f16",
    show_default=True,
    help="Type of the matrices.",
)
@click.option(
    "--ollama", is_flag=True, help="Also write a Modelfile for Ollama: template, stops, system."
)
@click.option(
    "--system",
    help="System message in the Modelfile. Default: the one of most rows that the run trained on, if "
    "any.",
)
@click.option("--replace", is_flag=True, help="Write over existing files.")
@shared_options.template
@shared_options.trust_remote_code
def gguf_command(
    target: str,
    adapter: str | None,
    out: Path,
    type_: str,
    ollama: bool,
    system: str | None,
    replace: bool,
    template: TemplateSettings | None,
    trust_remote_code: bool,
) -> None:
    """Write a GGUF file for llama.cpp, Ollama and LM Studio.

    RUN is a run folder (its last phase) or RUN/PHASE, whose adapter is merged first; MODEL is a folder,
    a hub name or smollm2. Tokens, merges, added tags, chat template and stop tokens go along. What
    llama.cpp would compute or tokenize otherwise is refused.
    """
    from forty2.export.gguf.exporting import export_gguf

    if system is not None and not ollama:
        raise click.UsageError("--system is for the Modelfile: give --ollama, too.")
    with ProgressBars() as bars:
        made = export_gguf(
            target,
            out,
            adapter=adapter,
            type=type_,
            ollama=ollama,
            system=system,
            replace=replace,
            template=template,
            trust_remote_code=trust_remote_code,
            progress=bars,
        )
    size = made.path.stat().st_size / 1e6
    click.echo(f"gguf      {made.path} ({made.type}, {made.architecture}, {size:,.1f} MB)")
    click.echo(f"tokens    {made.vocabulary.tokens:,}, {made.vocabulary.kind}")
    click.echo(f"stops     {' '.join(made.vocabulary.stops)}")
    name = re.sub(r"[^a-z0-9._-]+", "-", out.stem.lower())
    if made.modelfile is not None:
        path = made.modelfile.path
        click.echo(f"ollama    ollama create {name} -f {quote(str(path))} && ollama run {name}")
        if not made.modelfile.templated:
            warn(
                f"{path}: without TEMPLATE, because the chat template is not of a kind that Go's can "
                "say; Ollama then looks for one by itself: read `ollama show --template`"
            )
    click.echo(f"lm studio lms import {quote(str(out))}")
    smaller = out.with_name(f"{out.stem}-Q4_K_M.gguf")
    click.echo(
        f"K-quants  llama-quantize {quote(str(out))} {quote(str(smaller))} Q4_K_M "
        "(llama.cpp's tool; from f32, f16 or bf16)"
    )
    for note in made.notes:
        click.echo(f"note      {note}")


@export_command.command("peft")
@click.argument("target", metavar="RUN|ADAPTER")
@_base
@click.option("--out", "-o", required=True, type=shared_options.PATH, help="Folder to write.")
@click.option("--replace", is_flag=True, help="Write over an adapter folder.")
@shared_options.trust_remote_code
def peft_command(
    target: str, model: str | None, out: Path, replace: bool, trust_remote_code: bool
) -> None:
    """Write an adapter as a folder that PEFT and transformers load.

    RUN is a run folder (its last phase) or RUN/PHASE; ADAPTER is a folder of mlx-lm's form. The folder
    computes the same logits in PEFT; what PEFT cannot compute is refused.
    """
    from forty2.export.peft import export_peft

    with ProgressBars() as bars:
        made = export_peft(
            target,
            out,
            model=model,
            replace=replace,
            trust_remote_code=trust_remote_code,
            progress=bars,
        )
    click.echo(
        f"peft      {made.path} ({made.layers} layers, rank {made.rank}, alpha {made.alpha:g})"
    )
    click.echo(f"base      {made.base}")
    click.echo(f"load      PeftModel.from_pretrained(base, {str(made.path)!r})")
    for note in made.notes:
        click.echo(f"note      {with_flags(note)}")


@export_command.command("mlx")
@click.argument("adapter", metavar="PEFT")
@_base
@click.option("--out", "-o", required=True, type=shared_options.PATH, help="Folder to write.")
@click.option("--replace", is_flag=True, help="Write over an adapter folder.")
@shared_options.trust_remote_code
def mlx_command(
    adapter: str, model: str | None, out: Path, replace: bool, trust_remote_code: bool
) -> None:
    """Write a PEFT folder as an adapter that mlx-lm loads.

    forty2 itself needs no conversion: its commands read PEFT folders. A folder that `export peft` wrote is
    converted back to the same bytes.
    """
    from forty2.export.peft import export_mlx

    with ProgressBars() as bars:
        made = export_mlx(
            adapter,
            out,
            model=model,
            replace=replace,
            trust_remote_code=trust_remote_code,
            progress=bars,
        )
    click.echo(
        f"mlx       {made.path} ({made.layers} layers, rank {made.rank}, scale {made.scale:g})"
    )


@export_command.command("results")
@click.argument("source", metavar="RUN|FILE.json", type=shared_options.PATH)
@click.option("--out", "-o", required=True, type=shared_options.PATH, help="Folder to write.")
def results_command(source: Path, out: Path) -> None:
    """Write results as lm-evaluation-harness logs its samples.

    RUN is a run folder, each of whose measured stages becomes a folder in OUT; FILE.json is a result of
    `forty2 benchmark`. `forty2 compare` reads what this writes, and what the harness wrote.
    """
    from forty2.run_paths import expand_run_name
    from forty2.runs.archive.harness_export import export_results

    written = export_results(expand_run_name(source), out)
    for folder, tasks in written.items():
        echo(f"{folder}: {', '.join(tasks)}")
