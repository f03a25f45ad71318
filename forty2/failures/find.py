"""What a model gets wrong: its replies to the half `find` of a test set, and a verdict on each.

A question's verifier decides first; the judge is asked only where there is none. A check or a judge
that cannot say is no failure: the reply is unscored, left out of the pass rate, and counted.

All of it is in one journal until it is done, a line for each reply, verdict and request. The same
command goes on after a stop, and ends with the same bytes.
"""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from forty2.benchmark.stats import wilson
from forty2.errors import DataError, Forty2Error, RunError
from forty2.failures.asking import Limits
from forty2.failures.checking import check_permission, verify
from forty2.failures.folder import (
    FOUND,
    HALVES,
    REPLIES,
    VERDICTS,
    Item,
    StoredReply,
    StoredVerdict,
    about_testset,
    json_line,
    read_half,
    read_if_same,
)
from forty2.failures.judging import (
    Scoring,
    ToScore,
    ask_judge,
    judge_figures,
    judge_lines,
    judged,
)
from forty2.failures.replies import answer_items
from forty2.failures.training_data import TrainingSearch, about_file, training_files
from forty2.failures.verifiers import Verifier, parse_verifier
from forty2.files import JsonObject, atomic_write, write_json
from forty2.progress import Progress, silent

if TYPE_CHECKING:
    from forty2.benchmark.partial_results import PartialResults
    from forty2.failures.chat_models import ChatModel
    from forty2.model.chat_template import TemplateSettings
    from forty2.model.loading import LoadedModel

MAX_TOKENS, BATCH_SIZE = 256, 16
_JUDGE_SEED = 42
"""Seed of the requests to a judge; each has its own, from this and its item."""


@dataclass(frozen=True, kw_only=True)
class FindSettings:
    """How replies are made and judged."""

    max_tokens: int = MAX_TOKENS
    """Longest reply."""
    batch_size: int = BATCH_SIZE
    """Replies generated at a time."""
    run_untrusted_code: bool = False
    """Permission to run the programs that the model writes, in the sandbox."""
    scoring: Scoring = field(default_factory=Scoring)
    limits: Limits = field(default_factory=Limits)
    """How fast the judge is asked, and what it may cost."""


class Answered(NamedTuple):
    """Replies of a model to items, and a verdict on each."""

    figures: JsonObject
    """Pass rates by stratum, how replies ended, unscored ones by reason, the judge's agreement."""
    replies: dict[str, StoredReply | str]
    """By the items' ids; a text: the reason why there is none."""
    verdicts: dict[str, StoredVerdict]
    tokens: int
    """Tokens generated now, without those stored before."""
    seconds: float
    """Time that these took."""


class Found(NamedTuple):
    """What was found, and how long the replies of this call took."""

    record: JsonObject
    """As in `find.json`."""
    tokens: int
    """Tokens generated now, without those stored before."""
    seconds: float


def find_failures(
    folder: str | Path,
    model: str,
    adapter: str | None = None,
    *,
    judge: ChatModel | None = None,
    settings: FindSettings | None = None,
    template: TemplateSettings | None = None,
    trust_remote_code: bool = False,
    progress: Progress = silent,
) -> Found:
    """Answer the half to find in, decide on each reply, and write replies, verdicts and `find.json`.

    Args:
        folder: a test set that `make_testset` wrote.
        model: folder, hub name or `smollm2`, or a run, RUN/PHASE or adapter folder.
        adapter: adapter on the model.
        judge: the judge; None: replies without a verifier are unscored.

    Raises:
        RunError: there is no test set, it has changed, or the folder holds what another model said; or the
            budget of the judge has ended, and what it answered is stored.
        DataError: questions are in the training data of the model's run.
        BenchmarkError: the judge cannot be reached, or programs may not be run.
        ServeError: a local judge cannot be loaded.
    """
    from forty2.benchmark.partial_results import PartialResults, weights
    from forty2.model.base_model import find_model_and_adapter
    from forty2.model.loading import load

    folder, settings = Path(folder), settings or FindSettings()
    items = read_half(folder, "find")
    verifiers_of(items, settings)
    name, adapter_found = find_model_and_adapter(model, adapter)
    searched = refuse_trained(folder, items, adapter_found)
    loaded = load(name, adapter_found, template=template, trust_remote_code=trust_remote_code)
    header = {
        "model": model,
        "adapter": None if adapter is None else str(adapter),
        "max_tokens": settings.max_tokens,
        "batch_size": settings.batch_size,
        "scoring": asdict(settings.scoring) if judge is not None else None,
        "judge": None if judge is None else judge.about(),
        "testset_sha256": about_testset(folder)["sha256"],
        "weights": weights(loaded, adapter_found),
        "template_date": getattr(loaded.tokenizer, "template_date", None),
        "trained_on": searched,
    }
    out = folder / FOUND
    if out.exists():
        return Found(read_if_same(out, header, "found"), 0, 0.0)
    with PartialResults.open(out, header, resume=True) as partial:
        answered = answer_and_judge(
            loaded, items, partial, settings=settings, judge=judge, progress=progress
        )
        record = {**header, **answered.figures}
        _write(folder, items, answered.replies, answered.verdicts)
        partial.finish(record, write_json)
    return Found(record, answered.tokens, answered.seconds)


def answer_and_judge(
    loaded: LoadedModel,
    items: Sequence[Item],
    partial: PartialResults,
    *,
    settings: FindSettings,
    judge: ChatModel | None,
    progress: Progress,
) -> Answered:
    """Answer items and decide on each reply; what `partial` holds already is not done again.

    Raises:
        RunError: the budget of the judge has ended.
        DataError: an item's verifier is unusable.
        BenchmarkError: the judge cannot be reached, or programs may not be run.
    """
    verifiers = verifiers_of(items, settings)
    started = time.monotonic()
    before = _tokens(partial, items)
    replies = answer_items(
        loaded,
        items,
        partial,
        max_tokens=settings.max_tokens,
        batch_size=settings.batch_size,
        progress=progress,
    )
    seconds = time.monotonic() - started
    made = _tokens(partial, items) - before
    verdicts = _verify(items, verifiers, replies, partial, progress)
    left = _to_score(items, replies, verdicts)
    how = settings.scoring
    if judge is None:
        for one in left:
            reason = "no verifier, and no judge was named"
            verdicts[one.id] = StoredVerdict(one.id, "unscored", "judge", None, reason)
        return Answered(_figures(items, replies, verdicts), replies, verdicts, made, seconds)
    asked = ask_judge(
        judge, left, how, partial, seed=_JUDGE_SEED, limits=settings.limits, progress=progress
    )
    if not asked.complete:
        raise RunError(
            f"the budget for the judge has ended, after {len(asked.answers):,} of {len(left):,} replies; "
            "raise it, and give the same command again: no answer is lost"
        )
    for key, answers in asked.answers.items():
        verdicts[key] = judged(key, answers, how.at_least)
    figures = _figures(items, replies, verdicts)
    figures["judged"] = {**judge_figures(asked.answers, how), **asked.costs}
    return Answered(figures, replies, verdicts, made, seconds)


def _tokens(partial: PartialResults, items: Sequence[Item]) -> int:
    keys = [f"reply/{item.id}" for item in items]
    return sum(partial[key]["tokens"] for key in keys if key in partial)


def verifiers_of(items: Iterable[Item], settings: FindSettings) -> dict[str, Verifier]:
    """Read the verifiers of items, by id, and refuse those that run programs without a permission.

    Raises:
        DataError: a verifier is unusable.
        BenchmarkError: programs may not be run.
    """
    verifiers = {
        item.id: parse_verifier(item.verifier, f"item {item.id}")
        for item in items
        if item.verifier is not None
    }
    check_permission(verifiers.values(), settings.run_untrusted_code)
    return verifiers


# --- not trained on -------------------------------------------------------------------------------


def refuse_trained(
    folder: Path, items: Sequence[Item], adapter: str | Path | None
) -> JsonObject | None:
    """Search the training data of the adapter's run for the questions of both halves.

    Data that the test set was made disjoint from is not searched again. Of the untouched half only
    the number of questions found is said.

    Returns:
        The run and its files, or what could not be searched; None: the adapter is of no run.

    Raises:
        DataError: a question is in the training data.
    """
    from forty2.model.adapter import trained_on

    run = None if adapter is None else trained_on(adapter).run
    if run is None:
        return None
    dropped = about_testset(folder)["dropped"]["in_training_data"]
    known = {(file["source"], file.get("sha256")) for file in dropped}
    searched: list[JsonObject] = []
    every = [*items, *read_half(folder, HALVES[1])]
    search = None
    try:
        for file in training_files(str(run)):
            about = about_file(file)
            searched.append(about)
            if "sha256" in about and (about["source"], about["sha256"]) in known:
                continue
            search = search or TrainingSearch(
                [item.messages for item in every], [item.group for item in every]
            )
            if hits := search.search(file).hits:
                raise _Trained(
                    f"{len(hits):,} of {len(every):,} questions are in the training data of {run} "
                    f"({file.source}); make a test set with `disjoint_from={run}`"
                )
    except _Trained:
        raise
    except Forty2Error as error:  # the data was moved, or this release cannot read its recipe
        warnings.warn(
            f"{run}: its training data cannot be searched for the questions ({error}), so that some may "
            "have been trained on",
            stacklevel=3,
        )
        return {"run": run.name, "searched": False}
    return {"run": run.name, "searched": True, "files": searched}


class _Trained(DataError):
    """Questions were trained on."""


# --- verdicts -------------------------------------------------------------------------------------


def _verify(
    items: Sequence[Item],
    verifiers: Mapping[str, Verifier],
    replies: Mapping[str, StoredReply | str],
    partial: PartialResults,
    progress: Progress,
) -> dict[str, StoredVerdict]:
    """Check every reply that has a verifier; those without a reply are unscored."""
    found: dict[str, StoredVerdict] = {}
    waiting: list[tuple[Verifier, StoredReply]] = []
    for item in items:
        reply = replies[item.id]
        if isinstance(reply, str):
            found[item.id] = StoredVerdict(
                item.id, "unscored", "judge" if item.verifier is None else "verifier", None, reply
            )
        elif item.verifier is not None:
            waiting.append((verifiers[item.id], reply))
    return {**found, **verify(waiting, partial, progress)}


def _to_score(
    items: Sequence[Item],
    replies: Mapping[str, StoredReply | str],
    verdicts: Mapping[str, StoredVerdict],
) -> list[ToScore]:
    """List the replies without a verdict."""
    found = []
    for item in items:
        if item.id not in verdicts:
            reply = replies[item.id]
            assert isinstance(reply, StoredReply)  # the others have a verdict already
            found.append(ToScore(item.id, item.messages, item.reference, reply.reply))
    return found


# --- figures --------------------------------------------------------------------------------------


def _figures(
    items: Sequence[Item],
    replies: Mapping[str, StoredReply | str],
    verdicts: Mapping[str, StoredVerdict],
) -> JsonObject:
    """Count verdicts by stratum, and say how replies ended."""
    by_stratum: dict[str, Counter[str]] = {}
    for item in items:
        by_stratum.setdefault(item.stratum, Counter())[verdicts[item.id].verdict] += 1
    made = [reply for reply in replies.values() if isinstance(reply, StoredReply)]
    cut = {reply.id for reply in made if not reply.stopped}
    failed = {key for key, verdict in verdicts.items() if verdict.verdict == "fail"}
    unscored = [verdict for verdict in verdicts.values() if verdict.verdict == "unscored"]
    return {
        "strata": {name: _rate(by_stratum[name]) for name in sorted(by_stratum)},
        "all": _rate(sum(by_stratum.values(), Counter())),
        "replies": {
            "n": len(made),
            "stopped": len(made) - len(cut),
            "stop_rate": (len(made) - len(cut)) / len(made) if made else None,
            "failed_and_cut": len(failed & cut),
            "tokens": sum(reply.tokens for reply in made),
        },
        "by": dict(sorted(Counter(verdict.by for verdict in verdicts.values()).items())),
        "unscored": dict(Counter(verdict.reason for verdict in unscored).most_common(20)),
    }


def _rate(counts: Mapping[str, int]) -> JsonObject:
    passed, failed = counts.get("pass", 0), counts.get("fail", 0)
    scored = passed + failed
    return {
        "n": scored + counts.get("unscored", 0),
        "pass": passed,
        "fail": failed,
        "unscored": counts.get("unscored", 0),
        "pass_rate": passed / scored if scored else None,
        "interval": wilson(passed, scored)._asdict() if scored else None,
    }


def _write(
    folder: Path,
    items: Sequence[Item],
    replies: Mapping[str, StoredReply | str],
    verdicts: Mapping[str, StoredVerdict],
) -> None:
    """Write replies and verdicts in the order of the test set."""
    with atomic_write(folder / REPLIES) as file:
        for item in items:
            reply = replies[item.id]
            if isinstance(reply, str):
                reply = StoredReply(item.id, "", False, 0)
            file.write(json_line(reply._asdict()))
    with atomic_write(folder / VERDICTS) as file:
        for item in items:
            file.write(json_line(verdicts[item.id]._asdict()))


def format_found(record: JsonObject) -> str:
    """Format what was found, for the terminal."""
    lines = [
        f"{'stratum':<18}{'n':>7}{'pass':>7}{'fail':>7}{'unscored':>10}  pass rate, 95% interval"
    ]
    for name, part in {**record["strata"], "all": record["all"]}.items():
        rate = "—"
        if part["pass_rate"] is not None:
            low, high = part["interval"]["low"], part["interval"]["high"]
            rate = f"{part['pass_rate']:.1%}, {low:.1%} to {high:.1%}"
        counts = f"{part['n']:>7}{part['pass']:>7}{part['fail']:>7}{part['unscored']:>10}"
        lines.append(f"{name:<18}{counts}  {rate}")
    replies = record["replies"]
    if replies["n"]:
        lines.append(
            f"{replies['stop_rate']:.1%} of {replies['n']:,} replies ended by themselves; the others were "
            f"cut at {record['max_tokens']} tokens, {replies['failed_and_cut']} of them failed"
        )
    lines += [f"unscored: {count}: {reason}" for reason, count in record["unscored"].items()]
    if record.get("judged") is None:
        return "\n".join([*lines, "no verdict depends on a judge"])
    return "\n".join([*lines, *judge_lines(record["judged"])])
