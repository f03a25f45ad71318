"""`forty2 model`, `fuse`, `generate` and `logprobs`."""

from __future__ import annotations

from pathlib import Path

import click

from forty2.cli.progress_bars import Bars

_MODEL = click.option("--model", "-m", required=True, help="Model folder, hub name, or smollm2.")
_ADAPTER = click.option("--adapter", "-a", help="Adapter folder, or a run folder (its last phase).")
_TRUST = click.option(
    "--trust-remote-code",
    is_flag=True,
    help="Let the model run architecture code that it brings along.",
)


@click.group("model")
def model_command() -> None:
    """Fetch, import and describe models."""


@model_command.command("fetch")
@click.argument("name", default="smollm2")
def fetch_command(name: str) -> None:
    """Fetch a model: the starter (smollm2), or a hub name. Prints its folder."""
    from forty2.model.loading import resolve_model

    click.echo(resolve_model(name))


@model_command.command("import")
@click.argument("gguf", type=click.Path(path_type=Path))
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Model folder to write."
)
def import_command(gguf: Path, out: Path) -> None:
    """Turn a GGUF file into a model folder."""
    from forty2.model.gguf.importing import import_gguf

    click.echo(import_gguf(gguf, out))


@model_command.command("info")
@click.argument("model", default="smollm2")
@_TRUST
def info_command(model: str, trust_remote_code: bool) -> None:
    """Describe a model, and the device and BLAS that it would run on."""
    from forty2 import machine
    from forty2.model.loading import load, model_facts

    facts = (
        model_facts(load(model, trust_remote_code=trust_remote_code, lazy=True)) | machine.facts()
    )
    for key, value in facts.items():
        click.echo(f"{key:<14} {value}")


@click.command("fuse")
@_MODEL
@click.option(
    "--adapter", "-a", required=True, help="Adapter folder, or a run folder (its last phase)."
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write.")
@click.option("--quantize", type=click.Choice(["4", "8"]), help="Also write a quantized copy.")
@_TRUST
def fuse_command(
    model: str, adapter: str, out: Path, quantize: str | None, trust_remote_code: bool
) -> None:
    """Merge an adapter into its base in full precision, and check that nothing was lost."""
    from forty2.export.fusing import fuse

    bits = int(quantize) if quantize is not None else None
    with Bars() as bars:
        fused = fuse(
            model, adapter, out, quantize=bits, trust_remote_code=trust_remote_code, progress=bars
        )
    click.echo(f"fused     {fused.path}")
    click.echo(
        f"parity    KL {fused.parity_kl:.1e} a token from base + adapter, largest difference of "
        f"log-probabilities {fused.max_logit_difference:.1e}"
    )
    click.echo(f"adapter   KL {fused.adapter_kl:.1e} a token from base")
    if fused.quantized is not None:
        quantized = fused.quantized
        click.echo(f"quantized {quantized.path}")
        click.echo(
            f"survival  cosine {quantized.cosine:.3f} of the intended change; KL "
            f"{quantized.kl:.1e} a token from the fused model"
        )
    for warning in fused.warnings:
        click.echo(f"warning: {warning}", err=True)


@click.command("generate")
@_MODEL
@_ADAPTER
@click.option("--prompt", "-p", required=True, help="The user's turn; - reads standard input.")
@click.option("--system", help="A system turn before it.")
@click.option("--max-tokens", default=256, show_default=True, type=click.IntRange(1))
@click.option("--temperature", default=0.0, show_default=True, type=click.FloatRange(0))
@click.option("--seed", default=42, show_default=True, type=click.IntRange(0))
@_TRUST
def generate_command(
    model: str,
    adapter: str | None,
    prompt: str,
    system: str | None,
    max_tokens: int,
    temperature: float,
    seed: int,
    trust_remote_code: bool,
) -> None:
    """Answer a prompt through the model's chat template. Temperature 0 is greedy."""
    import sys

    from forty2.inference.generation import stream_reply
    from forty2.model.loading import load
    from forty2.text.encoder import Encoder

    text = sys.stdin.read() if prompt == "-" else prompt
    loaded = load(model, adapter, trust_remote_code=trust_remote_code)
    messages = [{"role": "system", "content": system}] if system is not None else []
    ids = Encoder(loaded.tokenizer).prompt([*messages, {"role": "user", "content": text}])
    for piece in stream_reply(
        loaded, ids, max_tokens=max_tokens, temperature=temperature, seed=seed
    ):
        click.echo(piece, nl=False)
    click.echo()


@click.command("logprobs")
@_MODEL
@_ADAPTER
@click.option(
    "--data", "-d", required=True, type=click.Path(path_type=Path), help="Pairs, JSON Lines."
)
@click.option("--out", "-o", required=True, type=click.Path(path_type=Path), help="JSON to write.")
@_TRUST
def logprobs_command(
    model: str, adapter: str | None, data: Path, out: Path, trust_remote_code: bool
) -> None:
    """Summed log-probabilities of both responses of each pair, with the supervised token ids."""
    from forty2.data.formats import read_pairs
    from forty2.files import write_json
    from forty2.model.loading import load
    from forty2.text.encoder import Encoder
    from forty2.training.reference import pair_logprobs

    pairs = read_pairs(data)
    loaded = load(model, adapter, trust_remote_code=trust_remote_code)
    encoder = Encoder(loaded.tokenizer)
    rows = [encoder.encode_pair(pair) for pair in pairs]
    with Bars() as bars:
        write_json(out, {"rows": pair_logprobs(loaded.model, rows, progress=bars)})
    click.echo(out)
