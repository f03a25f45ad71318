"""Replies of a model in training: to eval prompts, or to a few prompts of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from forty2.benchmark.eval_prompt_files import EvalPrompts
from forty2.benchmark.partial_results import PartialResults
from forty2.benchmark.replies import Faults, Tags, faults_of, garbage
from forty2.benchmark.tasks.eval_prompts import MAX_TOKENS, EvalPromptsTask
from forty2.files import JsonObject
from forty2.inference.generation import generate_replies
from forty2.model.loading import LoadedModel
from forty2.model.surgery import evaluating
from forty2.progress import Progress, silent
from forty2.text.rows import Exchange

_STAGE = "replies"
SPOT_TOKENS = 16
"""Longest reply to a prompt of the rows."""


class Probed(NamedTuple):
    """Replies of a model in training to a file of eval prompts."""

    metrics: dict[str, float]
    """Shares by name, as an evaluation logs them; `passed_say` is the share of the bucket say."""
    faults: list[str]
    """Faults of the model that the replies show, in words."""
    garbage: str
    """Sentence about replies that have nothing of what is expected; "": they are no garbage."""
    broken_tags: Sequence[str]
    """Sentences about replies whose tags are broken."""
    missing_tags: Sequence[str]
    """Sentences about tags that are in no reply that should hold them."""


def probe(
    loaded: LoadedModel,
    prompts: EvalPrompts,
    *,
    max_tokens: int = MAX_TOKENS,
    progress: Progress = silent,
) -> Probed:
    """Ask a model that is in training, without an effect on the training.

    Raises:
        BenchmarkError: a prompt does not fit the model, or its scores are not finite.
    """
    task = EvalPromptsTask(prompts=prompts.file, max_tokens=max_tokens)
    progress(_STAGE, 0, len(prompts.items), {})
    records = task.score(
        loaded,
        prompts,
        PartialResults.in_memory(),
        lambda done, total, _: progress(_STAGE, done, total, {}),
    )
    figures = task.figures(task.items(records))
    buckets = {f"passed_{name}": part["passed"] for name, part in figures["buckets"].items()}
    shares = {"passed": figures["passed"], **buckets, "stopped": figures["stop_rate"]}
    faults = faults_of(records)
    return Probed(
        shares, list(faults.replies), garbage(records), faults.broken_tags, faults.missing_tags
    )


def check_replies(
    loaded: LoadedModel, exchanges: Sequence[Exchange], progress: Progress = silent
) -> Faults:
    """Find the faults of greedy replies to the prompts of a few rows.

    Args:
        exchanges: the prompts, and the rows' own answers: a right reply has their tags.
    """
    tags, prompts = Tags(loaded.tokenizer), [one.prompt for one in exchanges]
    with evaluating(loaded.model, restore_random=True):
        progress(_STAGE, 0, len(prompts), {})
        replies = dict(
            generate_replies(
                loaded,
                prompts,
                max_tokens=SPOT_TOKENS,
                progress=lambda _, done, total, figures: progress(_STAGE, done, total, figures),
            )
        )
    records: list[JsonObject] = []
    for n, (prompt, answer) in enumerate(exchanges):
        ids, stopped = replies[n].ids, replies[n].stopped
        fits = len(answer) <= SPOT_TOKENS  # a longer one may rightly be cut
        owed = tags.owed(prompt, answer) if fits else []
        records.append(
            {
                "id": f"prompt {n + 1}",
                "prompt": loaded.tokenizer.decode(prompt),
                "reply": replies[n].text,
                "passed": False,
                "broken": tags.turn(prompt, ids, stopped=stopped).broken,
                "tags": tags.emitted(owed, ids, stopped=stopped),
            }
        )
    return faults_of(records)
