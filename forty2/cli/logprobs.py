"""`forty2 logprobs`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from forty2.cli import shared_options
from forty2.cli.progress_bars import ProgressBars

if TYPE_CHECKING:
    from forty2.model.chat_template import TemplateSettings


@click.command("logprobs")
@shared_options.model_and_adapter()
@click.option(
    "--data", "-d", required=True, type=shared_options.PATH, help="Preference pairs, JSON Lines."
)
@shared_options.out_option(required=True, help="JSON file to write.")
@shared_options.template
@shared_options.trust_remote_code
def logprobs_command(
    model: str,
    adapter: str | None,
    data: Path,
    out: Path,
    template: TemplateSettings | None,
    trust_remote_code: bool,
) -> None:
    """Write the log-probabilities of preference pairs.

    Each is the sum over the tokens of a response, in nats. The token ids are written too.
    """
    from forty2.data.formats import read_pairs
    from forty2.files import write_json
    from forty2.model.loading import load
    from forty2.text.encoder import Encoder
    from forty2.training.reference import pair_logprobs

    pairs = read_pairs(data)
    loaded = load(model, adapter, template=template, trust_remote_code=trust_remote_code)
    encoder = Encoder(loaded.tokenizer)
    rows = [encoder.encode_pair(pair) for pair in pairs]
    with ProgressBars() as bars:
        write_json(out, {"rows": pair_logprobs(loaded.model, rows, progress=bars)})
    click.echo(out)
