"""Two results of one benchmark, item by item: what changed, how surely, and a verdict. NumPy only.

Compared are the files that forty2 writes: of TruthfulQA, MMLU, GSM8K, HumanEval, behaviour,
perplexity and eval prompts, and those of a run's stages (`RUN/benchmarks/`), which hold several of
them. Every metric is taken from the items anew, higher is better for all, and the statistics are
`stats`'.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from forty2.benchmark.metrics import METRICS, item_metrics, pass_at
from forty2.benchmark.stats import (
    RESAMPLES,
    SEED,
    Values,
    Verdict,
    bootstrap,
    detectable,
    holm,
    mcnemar,
    overall,
    sign_flips,
    stderr,
    unchanged,
    verdict,
)
from forty2.benchmark.subjects import GROUPS
from forty2.errors import BenchmarkError

STORED_TOLERANCE = 1e-6
TEXTS = "log p of texts"
SETTINGS = (
    "questions_sha256",
    "data_sha256",
    "chat_template",
    "multiturn",
    "shots",
    "instruct",
    "samples",
    "temperature",
    "top_p",
    "max_tokens",
    "prompts_sha256",
    "form",
    "examples_sha256",
)
"""What must be the same in both results, as far as they have it."""


class Change(NamedTuple):
    """One metric, before and after, over the same questions."""

    before: float
    after: float
    difference: float
    low: float
    """Lower end of the paired 95% bootstrap interval of the difference."""
    high: float
    stderr: float
    """Of the difference, paired."""
    detectable: float | None
    """Smallest true change that this many questions would show with 80% power; None: unknown."""
    n: int
    """Questions that have this metric."""
    better: int
    """Questions that scored higher after."""
    worse: int
    p: float
    """McNemar's exact p where every score is 0 or 1, else that of random signs."""
    p_holm: float
    """p, corrected for all metrics of the comparison."""
    verdict: Verdict


class Comparison(NamedTuple):
    """Two results on the same questions."""

    questions: str
    n: int
    """Questions that the verdict is over."""
    before: str
    after: str
    margin: float
    metrics: dict[str, Change]
    judged: tuple[str, ...]
    """The metrics that the verdict is over; the others are parts of them, or stand beside."""
    categories: dict[str, float]
    """Mean change by category of TruthfulQA (of MC2) or by subject of MMLU: to look at, too few
    questions each to judge by."""
    kl: float | None
    """KL(after ‖ before) a token, where before is the base of a run and after one of its stages."""
    changed: float
    """Share of the items judged otherwise than before, by any metric that is 0 or 1."""
    verdict: Verdict

    def record(self) -> dict[str, Any]:
        """As JSON."""
        changes = {name: change._asdict() for name, change in self.metrics.items()}
        return {**self._asdict(), "metrics": changes}


def compare(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    *,
    margin: float = 0.01,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Comparison:
    """Compare two results of the same benchmark, or two stages of a run.

    Args:
        before, after: as the benchmarks return them, or `suite.measure`.
        margin: largest loss that still counts as no tax.
        resamples, seed: of the bootstrap and of random signs.

    Raises:
        BenchmarkError: a result is damaged, or they are not of the same questions. Says where.
    """
    if not 0 < margin < 1:
        raise BenchmarkError(f"margin {margin}: must lie between 0 and 1")
    old, new = read_scores(before, "the result before"), read_scores(after, "the result after")
    _check_same(old, new)
    pairs = {
        name: (_values(old.metrics[name]), _values(new.metrics[name]))
        for name in old.metrics
        if len(old.metrics[name]) > 1  # one question has no interval
    }
    judged = tuple(name for name in old.judged if name in pairs)
    if not judged:
        raise BenchmarkError(
            f"the result before holds {len(old.asked)} questions; two or more can be compared"
        )
    changed = _changed(old, new)
    kl = _kl(before, after)
    same = unchanged(kl, changed)
    ps = {name: _p(*pair, resamples, seed) for name, pair in pairs.items()}
    corrected = dict(zip(ps, holm(list(ps.values())), strict=True))
    changes = {}
    for name, (one, other) in pairs.items():
        differences = other - one
        least, most = range_of(name)
        interval = bootstrap(
            differences, least=least - most, most=most - least, resamples=resamples, seed=seed
        )
        changes[name] = Change(
            before=float(one.mean()),
            after=float(other.mean()),
            difference=float(differences.mean()),
            low=interval.low,
            high=interval.high,
            stderr=stderr(differences),
            detectable=detectable(differences),
            n=len(differences),
            better=int((differences > 0).sum()),
            worse=int((differences < 0).sum()),
            p=ps[name],
            p_holm=corrected[name],
            verdict="no change" if same else verdict(interval, margin, len(differences)),
        )
    return Comparison(
        questions=old.questions,
        n=changes[judged[0]].n,
        before=old.model,
        after=new.model,
        margin=margin,
        metrics=changes,
        judged=judged,
        categories=_by_category(old, new),
        kl=kl,
        changed=changed,
        verdict=overall([changes[name].verdict for name in judged]),
    )


def format_comparison(comparison: Comparison) -> str:
    """A comparison as text for the terminal."""
    width = max(map(len, comparison.metrics)) + 1
    head = (
        f"{'':<{width}}{'before':>6}{'after':>7}{'change':>8}  {'95% interval':<16}{'p':>7} verdict"
    )
    lines = [
        f"{comparison.questions}, {comparison.n} questions",
        f"before: {comparison.before}",
        f"after:  {comparison.after}",
    ]
    if comparison.kl is not None:
        lines.append(
            f"KL(after ‖ before) {comparison.kl:.2e} a token; {comparison.changed:.1%} of items judged "
            "otherwise"
        )
    lines += ["", head, "-" * len(head)]
    for name, one in comparison.metrics.items():
        interval = f"{one.low:+.3f} to {one.high:+.3f}"
        p = f"{one.p_holm:.3f}" if one.p_holm >= 0.001 else "<0.001"
        lines.append(
            f"{_shown(name):<{width}}{one.before:>6.3f}{one.after:>7.3f}{one.difference:>+8.3f}  "
            f"{interval:<16}{p:>7} {one.verdict}"
        )
    lines.append("")
    for name in comparison.judged:
        one = comparison.metrics[name]
        lines.append(
            f"{_shown(name)}: {one.n} questions, {one.better} better, {one.worse} worse; "
            f"detectable: {'unknown' if one.detectable is None else f'{one.detectable:.3f}'}"
        )
    of = ", ".join(map(_shown, comparison.judged))
    return "\n".join(
        [
            *lines,
            "",
            f"Verdict: {comparison.verdict}",
            f"(of {of}; a loss below {comparison.margin:g} counts as no tax)",
            "detectable: the least true change that so many questions show with 80% power",
            "p: McNemar's exact test, or random signs; corrected for all lines (Holm)",
        ]
    )


def _shown(name: str) -> str:
    return name.upper() if name in METRICS else name


# --- what two results are compared by -------------------------------------------------------------


class Scores(NamedTuple):
    """A result, read item by item."""

    questions: str
    model: str
    settings: dict[str, Any]
    asked: list[tuple[str, Any]]
    """Each item's name, and what else of it must be the same in both results."""
    metrics: dict[str, dict[int, float]]
    """By metric, the score of each item that has it, by its place in `asked`."""
    judged: tuple[str, ...]
    categories: dict[str, list[int]]
    """Places in `asked` by category."""
    by: str
    """The metric whose change is told by category; empty where there are none."""


def range_of(metric: str) -> tuple[float, float]:
    """What an item's score can be: of most metrics, a share."""
    return (-math.inf, 0.0) if metric == TEXTS else (0.0, 1.0)


def read_scores(result: Any, what: str) -> Scores:
    """A result's scores, checked: the means that it tells must be those of its items."""
    kind = _kind(result)
    if kind is None:
        raise BenchmarkError(
            f"{what} is no result of a benchmark; give a JSON file that forty2 benchmark wrote, or "
            "one of RUN/benchmarks"
        )
    try:
        scores, told = _READERS[kind](result, what)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        if isinstance(error, BenchmarkError):
            raise
        raise BenchmarkError(f"{what} is damaged ({error!r}); measure again") from error
    for name, values in scores.metrics.items():
        for place, value in values.items():
            if not math.isfinite(value):
                raise BenchmarkError(
                    f"{what}, item {place + 1} ({scores.asked[place][0]!r}): {name} is not finite; "
                    "measure again"
                )
    for name, stored in told.items():
        values = scores.metrics[name]
        mean = math.fsum(values.values()) / max(1, len(values))
        if not abs(mean - stored) <= STORED_TOLERANCE:
            raise BenchmarkError(
                f"{what}: {name} is stored as {stored:.6f}, but its items give {mean:.6f}; "
                "the file was changed: measure again"
            )
    return scores._replace(
        questions=_visible(scores.questions),
        model=_visible(scores.model),
        settings={"benchmark": kind, **scores.settings},
    )


def _visible(text: str) -> str:
    """What a file says, fit to be printed."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _kind(result: Any) -> str | None:
    if not isinstance(result, Mapping):
        return None
    if "stage" in result:
        return "stage"
    kind = result.get("benchmark", "behaviour" if "leak_rate" in result else None)
    return kind if isinstance(kind, str) and kind in _READERS else None


_Read = tuple[Scores, dict[str, float]]
"""Scores, and the means that a result tells, by metric."""


def _truthfulqa(result: Mapping[str, Any], what: str) -> _Read:
    asked: list[tuple[str, Any]] = []
    categories: dict[str, list[int]] = {}
    values = []
    for place, item in enumerate(result["items"]):
        for part in ("mc1", "mc2"):
            if set(item[part]["labels"]) != {0, 1}:
                raise ValueError(f"item {place + 1}: labels must be 0 and 1, both present")
            if not np.isfinite(np.asarray(item[part]["loglik"], np.float64)).all():
                raise BenchmarkError(
                    f"{what}, item {place + 1} ({item['question']!r}): a score is not finite; "
                    "measure again"
                )
        values.append(item_metrics(item))
        asked.append((item["question"], [item["mc1"]["labels"], item["mc2"]["labels"]]))
        categories.setdefault(str(item["category"]), []).append(place)
    metrics = {name: {n: v[name] for n, v in enumerate(values)} for name in METRICS}
    scores = Scores(
        str(result["questions"]),
        _model(result),
        _settings(result),
        asked,
        metrics,
        METRICS,
        categories,
        "mc2",
    )
    return scores, {name: float(result[name]) for name in METRICS}


def _mmlu(result: Mapping[str, Any], what: str) -> _Read:
    group_of = {subject: group for group, subjects in GROUPS.items() for subject in subjects}
    asked, metrics = [], {"mmlu": dict[int, float]()}
    categories: dict[str, list[int]] = {}
    for place, item in enumerate(result["items"]):
        right = float(int(np.argmax(item["logps"])) == item["answer"])
        asked.append((f"{item['subject']} {item['number']}", item["answer"]))
        metrics["mmlu"][place] = right
        metrics.setdefault(group_of.get(item["subject"], "no group"), {})[place] = right
        categories.setdefault(item["subject"], []).append(place)
    ordered = {name: metrics[name] for name in ("mmlu", *GROUPS, "no group") if name in metrics}
    told = {"mmlu": result["acc"], **{g: part["acc"] for g, part in result["groups"].items()}}
    scores = Scores(
        "MMLU", _model(result), _settings(result), asked, ordered, ("mmlu",), categories, "mmlu"
    )
    return scores, told


def _gsm8k(result: Mapping[str, Any], what: str) -> _Read:
    names = ("strict_match", "flexible_extract")
    items = list(enumerate(result["items"]))
    asked = [(item["question"], item["answer"]) for _, item in items]
    metrics = {name: {n: _truth(item[name]) for n, item in items} for name in names}
    scores = Scores("GSM8K", _model(result), _settings(result), asked, metrics, names, {}, "")
    return scores, {name: result[name] for name in names}


def _humaneval(result: Mapping[str, Any], what: str) -> _Read:
    names = tuple(name for name in result if name.startswith("pass@"))
    asked = [(item["task_id"], len(item["samples"])) for item in result["items"]]
    passed = [sum(_truth(s["passed"]) for s in item["samples"]) for item in result["items"]]
    metrics = {
        name: {
            n: pass_at(int(name.removeprefix("pass@")), asked[n][1], int(c))
            for n, c in enumerate(passed)
        }
        for name in names
    }
    scores = Scores("HumanEval", _model(result), _settings(result), asked, metrics, names, {}, "")
    return scores, {name: result[name] for name in names}


def _behaviour(result: Mapping[str, Any], what: str) -> _Read:
    """By likelihood (prefers) and by what the detector says of answers (the others)."""
    asked: list[tuple[str, Any]] = []
    metrics: dict[str, dict[int, float]] = {"prefers": {}, "no leak": {}, "right": {}}
    for place, item in enumerate(result["items"]):
        good, bad = float(item["good"]), float(item["bad"])
        prefers = float(good > bad) if math.isfinite(good) and math.isfinite(bad) else math.nan
        asked.append((item["id"], item["gate"]))
        metrics["prefers"][place] = prefers
        metrics.setdefault(f"prefers: {item['gate']}", {})[place] = prefers
        if "ok" in item:
            metrics.setdefault(f"answers: {item['gate']}", {})[place] = _truth(item["ok"])
        if "leak" in item:
            metrics["no leak"][place] = 1.0 - _truth(item["leak"])
            metrics["right"][place] = _truth(item["right"])
    told = {f"prefers: {gate}": share for gate, share in result["preference"].items()}
    told["prefers"] = told.pop("prefers: all")
    told |= {"no leak": 1.0 - result["leak_rate"], "right": result["right_rate"]}
    scores = Scores(
        "held-out prompts",
        _model(result),
        _settings(result),
        asked,
        metrics,
        ("prefers", "no leak", "right"),
        {},
        "",
    )
    return scores, told


def _eval_prompts(result: Mapping[str, Any], what: str) -> _Read:
    asked: list[tuple[str, Any]] = []
    metrics: dict[str, dict[int, float]] = {"passed": {}}
    for place, item in enumerate(result["items"]):
        passed = _truth(item["passed"])
        asked.append((item["id"], item["prompt"]))
        metrics["passed"][place] = passed
        metrics.setdefault(f"passed: {item['bucket']}", {})[place] = passed
    told = {f"passed: {name}": part["passed"] for name, part in result["buckets"].items()}
    scores = Scores(
        str(result["prompts"]),
        _model(result),
        _settings(result),
        asked,
        metrics,
        ("passed",),
        {},
        "",
    )
    return scores, {"passed": result["passed"], **told}


def _perplexity(result: Mapping[str, Any], what: str) -> _Read:
    """log p a token, which is -log perplexity; each text weighs as many tokens as it has."""
    items = list(result["items"].items())
    asked = [(title, item["tokens"]) for title, item in items]
    tokens = sum(item["tokens"] for _, item in items) / len(items)
    values = {n: float(item["logp"]) / tokens for n, (_, item) in enumerate(items)}
    scores = Scores(
        "texts", _model(result), _settings(result), asked, {TEXTS: values}, (TEXTS,), {}, ""
    )
    return scores, {TEXTS: -math.log(result["perplexity"])}


def _stage(result: Mapping[str, Any], what: str) -> _Read:
    """TruthfulQA is what the verdict is over; the gates and the texts stand beside."""
    parts = [
        _READERS[name](result[name], f"{what}, {name}")
        for name in ("truthfulqa", "behaviour", "perplexity")
        if name == "truthfulqa" or name in result
    ]
    first = parts[0][0]
    asked: list[tuple[str, Any]] = []
    metrics: dict[str, dict[int, float]] = {}
    for scores, _ in parts:
        for name, values in scores.metrics.items():
            metrics[name] = {len(asked) + place: value for place, value in values.items()}
        asked += scores.asked
    told = {name: value for _, means in parts for name, value in means.items()}
    return first._replace(asked=asked, metrics=metrics), told


_READERS: dict[str, Callable[[Mapping[str, Any], str], _Read]] = {
    "truthfulqa": _truthfulqa,
    "mmlu": _mmlu,
    "gsm8k": _gsm8k,
    "humaneval": _humaneval,
    "behaviour": _behaviour,
    "eval_prompts": _eval_prompts,
    "perplexity": _perplexity,
    "stage": _stage,
}


def _settings(result: Mapping[str, Any]) -> dict[str, Any]:
    return {key: result.get(key) for key in SETTINGS}


def _model(result: Mapping[str, Any]) -> str:
    adapter = result.get("adapter")
    return str(result.get("model", "not told")) + (f" + {adapter}" if adapter else "")


def _truth(value: Any) -> float:
    if value not in (True, False):
        raise ValueError(f"{value!r} is neither true nor false")
    return float(value)


# --- the comparison -------------------------------------------------------------------------------


def _check_same(old: Scores, new: Scores) -> None:
    """Refuse results that are not of the same questions, asked the same way."""
    for key, value in old.settings.items():
        if value != new.settings[key]:
            raise BenchmarkError(
                f"not comparable: {key} is {value!r} ({old.questions}) before and "
                f"{new.settings[key]!r} ({new.questions}) after; measure both alike"
            )
    if len(old.asked) != len(new.asked):
        raise BenchmarkError(
            f"not comparable: {len(old.asked)} questions before, {len(new.asked)} after; use the "
            "same n and seed"
        )
    for number, (one, other) in enumerate(zip(old.asked, new.asked, strict=True), 1):
        if one[0] != other[0]:
            raise BenchmarkError(
                f"not comparable: item {number} is {one[0]!r} before and {other[0]!r} after; use "
                "the same n and seed"
            )
        if one[1] != other[1]:
            raise BenchmarkError(
                f"not comparable: item {number} ({one[0]!r}) has other options or another answer; "
                "measure both on one file"
            )
    for name in {**old.metrics, **new.metrics}:
        if old.metrics.get(name, {}).keys() != new.metrics.get(name, {}).keys():
            raise BenchmarkError(f"not comparable: {name} is of other items before than after")


def _values(scores: Mapping[int, float]) -> Values:
    return np.array(list(scores.values()), np.float64)


def _is_binary(*scores: Values) -> bool:
    return all(bool(np.isin(values, (0.0, 1.0)).all()) for values in scores)


def _p(old: Values, new: Values, resamples: int, seed: int) -> float:
    if _is_binary(old, new):
        return mcnemar(int((new > old).sum()), int((new < old).sum()))
    return sign_flips(new - old, resamples=resamples, seed=seed)


def _changed(old: Scores, new: Scores) -> float:
    judged, otherwise = set[int](), set[int]()
    for name, before in old.metrics.items():
        after = new.metrics[name]
        if _is_binary(_values(before), _values(after)):
            judged |= before.keys()
            otherwise |= {place for place, score in before.items() if after[place] != score}
    return len(otherwise) / max(1, len(judged))


def _kl(before: Mapping[str, Any], after: Mapping[str, Any]) -> float | None:
    """Of a stage from its base, where that is what the result before is."""
    if before.get("stage") != "base" or "divergence" not in after:
        return None
    return float(after["divergence"]["kl"])


def _by_category(old: Scores, new: Scores) -> dict[str, float]:
    return {
        name: float(
            np.mean([new.metrics[old.by][n] - old.metrics[old.by][n] for n in old.categories[name]])
        )
        for name in sorted(old.categories)
    }
