"""`forty2 fuse`."""

from __future__ import annotations

from pathlib import Path

import click

from forty2.cli import shared_options
from forty2.cli.echo import echo
from forty2.cli.errors import warn
from forty2.cli.progress_bars import ProgressBars


@click.command("fuse")
@shared_options.model_and_adapter(adapter_required=True)
@click.option("--out", required=True, type=shared_options.PATH, help="Folder to write.")
@click.option(
    "--quantize", type=click.Choice(["4", "8"]), help="Also write a copy quantized to these bits."
)
@click.option(
    "--replace", is_flag=True, help="Write over a model that was fused from another adapter."
)
@shared_options.trust_remote_code
def fuse_command(
    model: str,
    adapter: str,
    out: Path,
    quantize: str | None,
    replace: bool,
    trust_remote_code: bool,
) -> None:
    """Merge an adapter into its base model, and check the result.

    Merges in full precision, then compares the merged model with base + adapter on real text.
    """
    from forty2.export.fusing import fuse

    bits = int(quantize) if quantize is not None else None
    with ProgressBars() as bars:
        fused = fuse(
            model,
            adapter,
            out,
            quantize=bits,
            replace=replace,
            trust_remote_code=trust_remote_code,
            progress=bars,
        )
    echo(f"fused     {fused.path}")
    echo(
        f"parity    KL {fused.parity_kl:.1e} a token from base + adapter, largest difference of "
        f"log-probabilities {fused.max_logit_difference:.1e}"
    )
    echo(f"adapter   KL {fused.adapter_kl:.1e} a token from base")
    if fused.quantized is not None:
        quantized = fused.quantized
        echo(f"quantized {quantized.path}")
        cosine = "no weight is changed"
        if quantized.cosine is not None:
            cosine = f"cosine {quantized.cosine:.3f} of the intended change"
        echo(f"survival  {cosine}; KL {quantized.kl:.1e} a token from the fused model")
    for warning in fused.warnings:
        warn(warning)
