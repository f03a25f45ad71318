"""`forty2 generate`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from forty2.cli import shared_options
from forty2.cli.columns import cut
from forty2.cli.echo import echo, echo_pieces
from forty2.cli.json_output import echo_json
from forty2.cli.progress_bars import ProgressBars
from forty2.files import JsonObject, write_errors, write_text
from forty2.text_layout import terminal_width

if TYPE_CHECKING:
    from forty2.inference.generation import Reply, Sampling
    from forty2.model.chat_template import TemplateSettings
    from forty2.model.loading import LoadedModel
    from forty2.progress import Progress


EVALS = ".json"
"""Ending of a file of eval prompts."""


@click.command("generate")
@shared_options.model_and_adapter()
@click.option("--prompt", "-p", help="The user's message. `-` reads it from standard input.")
@click.option(
    "--prompts",
    type=shared_options.PATH,
    help="File of prompts, in place of --prompt: .txt with one a line, rows as in training data, or "
    ".json eval prompts.",
)
@shared_options.out_option(
    help="New file for the replies to --prompts, as JSON Lines. Default: standard output."
)
@click.option(
    "--system",
    help="A system message before it. Default: the one of most rows that the run trained on, if any; "
    '"" for none.',
)
@click.option(
    "--raw",
    is_flag=True,
    help="Take --prompt as all that the model reads, control tokens included, without a chat template.",
)
@click.option(
    "--max-tokens",
    default=256,
    show_default=True,
    type=click.IntRange(1),
    help="Longest answer in tokens.",
)
@shared_options.temperature
@shared_options.seed_option(type=click.IntRange(0), help="Seed of the sampling.")
@shared_options.as_json
@shared_options.template
@shared_options.trust_remote_code
def generate_command(
    model: str,
    adapter: str | None,
    prompt: str | None,
    prompts: Path | None,
    out: Path | None,
    system: str | None,
    raw: bool,
    max_tokens: int,
    temperature: float,
    seed: int,
    as_json: bool,
    template: TemplateSettings | None,
    trust_remote_code: bool,
) -> None:
    """Answer a prompt or a file of prompts.

    Each goes through the model's chat template, but for a --raw one.
    """
    if (prompt is None) == (prompts is None):
        raise click.UsageError("Give either --prompt or --prompts.")
    if out is not None and (prompts is None or as_json):
        raise click.UsageError("--out is for --prompts, without --json.")
    if raw and (prompts is not None or system is not None):
        raise click.UsageError("--raw is for --prompt alone, which holds all that the model reads.")
    if out is not None and out.exists():
        raise click.UsageError(f"{out}: exists already; name another --out, or remove it.")
    from forty2.inference.generation import Sampling, generate_replies, stream_reply
    from forty2.model.loading import load
    from forty2.text.encoder import Encoder

    if not raw and (prompts is None or prompts.suffix != EVALS):
        system = _chosen_system(system, adapter)
    if prompts is not None:
        questions = _Questions(prompts, system)
        loaded = load(model, adapter, template=template, trust_remote_code=trust_remote_code)
        sampling = Sampling(temperature) if temperature else None
        with ProgressBars() as bars:
            rows = questions.answer(
                loaded, max_tokens=max_tokens, sampling=sampling, seed=seed, progress=bars
            )
        if as_json:
            echo_json("generate", {"replies": rows})
            return
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        if out is None:
            click.echo(text, nl=False)
        else:
            with write_errors(out):
                write_text(out, text)
            echo(out)
        return
    text = sys.stdin.read() if prompt == "-" else prompt or ""
    loaded = load(model, adapter, template=template, trust_remote_code=trust_remote_code)
    if raw:
        ids = list(loaded.tokenizer.encode(text, add_special_tokens=False))
        if not ids:
            raise click.UsageError("--raw: the prompt is empty.")
    else:
        messages = [{"role": "system", "content": system}] if system else []
        ids = Encoder(loaded.tokenizer).prompt([*messages, {"role": "user", "content": text}])
    if as_json:
        sampling = Sampling(temperature) if temperature else None
        replies = generate_replies(
            loaded, [ids], max_tokens=max_tokens, sampling=sampling, seeds=[seed]
        )
        ((_, reply),) = replies
        echo_json("generate", {"replies": [{"prompt": text, **reply_facts(reply)}]})
        return
    echo_pieces(
        stream_reply(loaded, ids, max_tokens=max_tokens, temperature=temperature, seed=seed)
    )


def _chosen_system(system: str | None, adapter: str | None) -> str | None:
    """Return the system message; say so if it is that of the adapter's training."""
    from forty2.model.adapter import choose_system

    chosen = choose_system(system, adapter)
    if system is None and chosen is not None:
        said = f'system message, as in training (--system "" for none): {" ".join(chosen.split())}'
        echo(cut(said, terminal_width(sys.stderr) or 160), err=True)
    return chosen


def reply_facts(reply: Reply) -> JsonObject:
    """Return what is written of a reply."""
    return {"reply": reply.text, "tokens": reply.tokens, "stopped": reply.stopped}


class _Questions:
    """A file of prompts, read before the model is loaded."""

    def __init__(self, file: Path, system: str | None) -> None:
        from forty2.benchmark.eval_prompt_files import load_eval_prompts
        from forty2.data.prompts import read_prompts

        self._evals = load_eval_prompts(file) if file.suffix == EVALS else None
        if self._evals is not None and system is not None:
            raise click.UsageError("--system: eval prompts have system messages of their own.")
        self._prompts = [] if self._evals is not None else read_prompts(file, system)

    def answer(
        self,
        loaded: LoadedModel,
        *,
        max_tokens: int,
        sampling: Sampling | None,
        seed: int,
        progress: Progress,
    ) -> list[JsonObject]:
        """Answer all prompts, in the file's order."""
        from forty2.benchmark.tasks.eval_prompts import Asked
        from forty2.inference.generation import generate_replies
        from forty2.text.encoder import Encoder

        if self._evals is not None:
            ids = Asked(loaded, self._evals, max_tokens).ids
            rows: list[JsonObject] = [{"id": i.id, "prompt": i.text} for i in self._evals.items]
        else:
            encoder = Encoder(loaded.tokenizer)
            ids = [encoder.prompt(prompt.messages) for prompt in self._prompts]
            rows = [{"origin": p.origin, "messages": list(p.messages)} for p in self._prompts]
            for prompt, tokens in zip(self._prompts, ids, strict=True):
                loaded.row_limit.refuse(len(tokens) + 1, f"{prompt.origin}: the prompt and a reply")
        seeds = range(seed, seed + len(ids))
        replies = generate_replies(
            loaded, ids, max_tokens=max_tokens, sampling=sampling, seeds=seeds, progress=progress
        )
        for number, reply in replies:
            rows[number] |= reply_facts(reply)
        return rows
