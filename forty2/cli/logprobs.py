"""`forty2 logprobs`."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import click

from forty2.cli import shared_options
from forty2.cli.echo import echo
from forty2.cli.json_output import echo_json
from forty2.cli.progress_bars import ProgressBars

if TYPE_CHECKING:
    from forty2.model.chat_template import TemplateSettings


@click.command("logprobs")
@shared_options.model_and_adapter()
@click.option(
    "--data", "-d", required=True, type=shared_options.PATH, help="Preference pairs, JSON Lines."
)
@shared_options.json_out(required=True, help="JSON file to write.")
@click.option(
    "--max-length",
    type=click.IntRange(2),
    help="Longest prompt and response in tokens; a longer pair is refused. Default: the model's "
    "context.",
)
@shared_options.as_json
@shared_options.template
@shared_options.trust_remote_code
def logprobs_command(
    model: str,
    adapter: str | None,
    data: Path,
    out: Path,
    max_length: int | None,
    as_json: bool,
    template: TemplateSettings | None,
    trust_remote_code: bool,
) -> None:
    """Write the log-probabilities of preference pairs.

    Each is the sum over the tokens of a response, in nats. The token ids are written too. A pair
    that is longer than the model's context is refused, not cut.
    """
    from forty2.data.formats import read_pairs
    from forty2.files import write_json
    from forty2.model.configuration import RowLimit
    from forty2.model.loading import load
    from forty2.text.encoder import Encoder
    from forty2.training.reference import pair_logprobs

    pairs = read_pairs(data)
    loaded = load(model, adapter, template=template, trust_remote_code=trust_remote_code)
    encoder = Encoder(loaded.tokenizer)
    rows = [encoder.encode_pair(pair) for pair in pairs]
    limit = loaded.row_limit
    if max_length is not None:
        limit = RowLimit(max_length, "the limit that --max-length sets")
    for row in rows:
        limit.refuse(len(row.prompt) + max(map(len, row.responses)), row.origin)
    with ProgressBars() as bars:
        scored = pair_logprobs(loaded.model, rows, progress=bars)
    write_json(out, {"rows": scored})
    if not as_json:
        echo(out)
        return
    chosen, rejected = ([row[side]["logprob"] for row in scored] for side in ("chosen", "rejected"))
    right = [(a > b) + (a == b) / 2 for a, b in zip(chosen, rejected, strict=True)]
    means = {"chosen": fmean(chosen), "rejected": fmean(rejected), "right": fmean(right)}
    echo_json("logprobs", {"out": out, "rows": len(scored), **means})
