"""How well a model's own scores tell names of real things from invented ones.

Each score is a number for a name; the measure of it is its AUC, the chance that a real name scores
higher than an invented one. What is chosen (the best score, its direction, a threshold) is chosen on
one half of the names, and all that is reported is of the other. Both are measured on twins, a real
name beside an invented one of about its length (`data/build/knowledge.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from forty2.benchmark.prompts import Row
from forty2.benchmark.stats import Interval, auc, bootstrap_auc, wilson
from forty2.data.build.knowledge import Halves, Thing, twins
from forty2.data.library import material
from forty2.data.record_texts import words_of
from forty2.errors import BenchmarkError
from forty2.files import JsonObject
from forty2.progress import Progress, silent
from forty2.text.encoder import Encoder

if TYPE_CHECKING:  # a table is written without mlx
    from forty2.model.loading import LoadedModel

SCORES = {
    "name": "log-probability of the name, nats per token",
    "claim": "log-probability of the likeliest claim of what it is, nats",
    "answer": "log-odds of the answer real against invented, mean of both orders, nats",
    "consistency": "words that sampled answers share, 0 to 1",
}
"""The model's scores, and what each is."""
CONTROL = "letters"
"""A score without a model: the number of letters. It is shown beside the others, never chosen."""
SAMPLES = 5
"""Answers sampled for each name."""
TEMPERATURE = 0.7
MAX_TOKENS = 24
BATCH_NAMES = 16
"""Names scored at once."""
BATCH_ANSWERS = 48
"""Answers generated at once."""
CURVE_POINTS = 11
"""Thresholds on the curve, at equal shares of the names that they were chosen on."""
RULE = (
    "the threshold with the largest sum of invented names doubted and real names answered "
    "(as shares) on the choosing half; of several, the one that answers most"
)
"""How the point on the curve is chosen, before the reporting half is scored against it."""

Scores = Mapping[str, Mapping[str, float]]
"""For each name its scores."""


# --- scoring --------------------------------------------------------------------------------------


def score_names(
    loaded: LoadedModel,
    names: Sequence[Thing],
    *,
    seed: int = 42,
    samples: int = SAMPLES,
    progress: Progress = silent,
) -> dict[str, dict[str, float]]:
    """Compute every score of every name, in the chat template.

    Args:
        seed: seed of the sampled answers.
        samples: answers sampled for each name, two or more.

    Raises:
        ModelError: the model has no chat template.
        BenchmarkError: a score is not finite.
    """
    encoder = Encoder(loaded.tokenizer)
    asked = [thing.shown for thing in names]
    nouns = [kind["noun"] for kind in material("entity_questions")["kinds"].values()]
    both = ["Real.", "Invented."]

    def score(stage: str, prompts: list[str], answers: list[list[str]]) -> list[list[_Logp]]:
        return _score_answers(loaded, encoder, prompts, answers, stage, progress)

    own = score("names", ["Write the name of something."] * len(asked), [[name] for name in asked])
    claims = score(
        "claims",
        [f"What is {name}?" for name in asked],
        [[f"{name} is {_article(noun)} {noun}." for noun in nouns] for name in asked],
    )
    orders = [
        score(
            f"answers, {first} first",
            [f"Is {name} {first} or {last}? Answer with one word." for name in asked],
            [both] * len(asked),
        )
        for first, last in (("real", "invented"), ("invented", "real"))
    ]
    odds = [[real.total - invented.total for real, invented in order] for order in orders]
    shared = _consistency(loaded, encoder, asked, seed, samples, progress)
    found = {
        thing.name: {
            "name": own[n][0].total / own[n][0].tokens,
            "claim": max(claim.total for claim in claims[n]),
            "answer": (odds[0][n] + odds[1][n]) / 2,
            "consistency": shared[n],
            CONTROL: float(len(thing.name)),
        }
        for n, thing in enumerate(names)
    }
    for name, values in found.items():
        if not all(map(math.isfinite, values.values())):
            raise BenchmarkError(f"{name}: the score is not finite; the model is broken")
    return found


class _Logp(NamedTuple):
    """Summed log-probability of an answer in nats, and its number of tokens."""

    total: float
    tokens: int


def _score_answers(
    loaded: LoadedModel,
    encoder: Encoder,
    prompts: Sequence[str],
    answers: Sequence[Sequence[str]],
    stage: str,
    progress: Progress,
) -> list[list[_Logp]]:
    """Score some answers to each prompt."""
    from forty2.benchmark.scoring import Scorer
    from forty2.inference.generation import common_prefix_length

    questions: list[list[Row]] = []
    for prompt, texts in zip(prompts, answers, strict=True):
        turn = {"role": "user", "content": prompt}
        encoded = [encoder.response([turn], [_answer(text)]) for text in texts]
        questions.append([Row(given, response) for given, response, _ in encoded])
    contexts = [rows[0].given[:-1] for rows in questions]
    scorer = Scorer(loaded.model).after(contexts[0][: common_prefix_length(contexts)])
    found: list[list[_Logp]] = []
    for start in range(0, len(questions), BATCH_NAMES):
        batch = questions[start : start + BATCH_NAMES]
        for rows, totals in zip(batch, scorer.score(batch), strict=True):
            found.append([_Logp(s, len(row.scored)) for s, row in zip(totals, rows, strict=True)])
        progress(stage, len(found), len(questions), {})
    return found


def _consistency(
    loaded: LoadedModel,
    encoder: Encoder,
    names: Sequence[str],
    seed: int,
    samples: int,
    progress: Progress,
) -> list[float]:
    """Sample answers to what each name is; return the mean share of words that two of them share."""
    from forty2.inference.generation import Sampling, generate_replies

    asked = [encoder.prompt([{"role": "user", "content": f"What is {n}?"}]) for n in names]
    prompts = [prompt for prompt in asked for _ in range(samples)]
    texts = [""] * len(prompts)
    for place, reply in generate_replies(
        loaded,
        prompts,
        max_tokens=MAX_TOKENS,
        sampling=Sampling(TEMPERATURE),
        seeds=range(seed, seed + len(prompts)),
        batch_size=BATCH_ANSWERS,
        progress=progress,
    ):
        texts[place] = reply.text
    return [agreement(texts[n * samples : (n + 1) * samples], name) for n, name in enumerate(names)]


def agreement(answers: Sequence[str], name: str) -> float:
    """Compute the mean overlap (intersection / union) of the words of every two answers, 0 to 1.

    The words of the name are left out, as all answers repeat them.
    """
    repeated = set(words_of(name))
    bags = [set(words_of(answer)) - repeated for answer in answers]
    return float(np.mean([len(a & b) / max(1, len(a | b)) for a, b in combinations(bags, 2)]))


def _answer(text: str) -> JsonObject:
    return {"role": "assistant", "content": text}


def _article(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"


# --- measuring ------------------------------------------------------------------------------------


class Line(NamedTuple):
    """How well one score tells real names from invented ones, on the reporting half."""

    score: str
    higher_for: str
    """"real" or "invented": which scored higher on the choosing half."""
    auc: float
    interval: Interval
    obscure: float | None
    """AUC of twins whose real name is obscure (has a row in the library); None: there are none."""
    obscure_interval: Interval | None


class Point(NamedTuple):
    """A threshold, and what comes of it."""

    threshold: float
    """Least score, times the direction, of a name that counts as known."""
    doubts_invented: float
    """Share of invented names below the threshold."""
    answers_real: float
    """Share of real names at or above it."""


@dataclass(frozen=True, kw_only=True)
class Knowledge:
    """How well a model's scores tell real names from invented ones, and the threshold chosen by the best."""

    lines: list[Line]
    """The model's scores, then the control."""
    best: str
    """Score with the highest AUC on the choosing half."""
    separates: bool
    """Whether the best score tells names apart on the reporting half: its AUC's interval is above 0.5."""
    chosen: Point
    """Threshold of the best score that `RULE` chose, with its shares on the choosing half."""
    reported: Point
    """The same threshold, with its shares on the reporting half."""
    curve: list[Point]
    """Points of the best score on the reporting half."""
    twins: dict[str, int]
    """Number of twins in each half."""
    known: frozenset[str]
    """Real names of the choosing half that were asked and are to be answered: at or above the
    threshold; all if nothing separates."""

    def line(self, score: str) -> Line:
        return next(line for line in self.lines if line.score == score)


def names_to_ask(halves: Halves) -> list[Thing]:
    """Return the names that `measure` needs: all twins, and the real names that pairs are made of."""
    rest = [thing for thing in halves.choosing if thing.real and thing.row is not None]
    asked = [*twins(halves.choosing), *twins(halves.reporting), *rest]
    return list({thing.name: thing for thing in asked}.values())


def measure(halves: Halves, scores: Scores) -> Knowledge:
    """Choose a score and a threshold on the twins of one half, and measure both on the other's.

    Args:
        scores: of `names_to_ask`.

    Raises:
        DataError: a half has no twins.
    """
    choosing, reporting = map(twins, halves)
    areas = {s: auc(*_by_class(choosing, _of(scores, s))) for s in (*SCORES, CONTROL)}
    signs = {score: 1.0 if area >= 0.5 else -1.0 for score, area in areas.items()}
    best = max(SCORES, key=lambda score: max(areas[score], 1 - areas[score]))
    lines = [_line(reporting, scores, score, signs[score]) for score in areas]
    value = _of(scores, best, signs[best])
    chosen = choose_point(choosing, value)
    separates = next(line for line in lines if line.score == best).interval.low > 0.5
    least = chosen.threshold if separates else -math.inf
    levels = np.quantile([value(t) for t in choosing], np.linspace(0, 1, CURVE_POINTS))
    asked = [thing for thing in halves.choosing if thing.real and thing.name in scores]
    return Knowledge(
        lines=lines,
        best=best,
        separates=separates,
        chosen=chosen,
        reported=point(reporting, value, chosen.threshold),
        curve=[point(reporting, value, float(level)) for level in levels],
        twins={"choosing": len(choosing) // 2, "reporting": len(reporting) // 2},
        known=frozenset(thing.name for thing in asked if value(thing) >= least),
    )


def point(names: Sequence[Thing], value: Callable[[Thing], float], threshold: float) -> Point:
    """Compute how many names a threshold doubts and answers."""
    real, invented = _by_class(names, value)
    return Point(
        threshold,
        float(np.mean([one < threshold for one in invented])),
        float(np.mean([one >= threshold for one in real])),
    )


def choose_point(names: Sequence[Thing], value: Callable[[Thing], float]) -> Point:
    """Choose a point by `RULE`. The sum is Youden's index + 1 (Youden 1950, Cancer 3:32)."""
    levels = sorted({value(thing) for thing in names})
    points = [point(names, value, level) for level in levels]
    return max(
        points, key=lambda one: one.doubts_invented + one.answers_real
    )  # the first, in a tie


def _line(names: Sequence[Thing], scores: Scores, score: str, sign: float) -> Line:
    value = _of(scores, score, sign)
    both = _by_class(names, value)
    obscure = _by_class(_obscure(names), value)
    return Line(
        score,
        "real" if sign > 0 else "invented",
        auc(*both),
        bootstrap_auc(*both, paired=True),
        auc(*obscure) if obscure[0] else None,
        bootstrap_auc(*obscure, paired=True) if obscure[0] else None,
    )


def _obscure(names: Sequence[Thing]) -> list[Thing]:
    """Return the twins of which the real one is obscure."""
    pairs = zip(names[::2], names[1::2], strict=True)
    return [thing for pair in pairs if pair[0].row is not None for thing in pair]


def _of(scores: Scores, score: str, sign: float = 1.0) -> Callable[[Thing], float]:
    return lambda thing: sign * scores[thing.name][score]


def _by_class(
    names: Sequence[Thing], value: Callable[[Thing], float]
) -> tuple[list[float], list[float]]:
    """Return the values of the real names and of the invented ones."""
    return (
        [value(thing) for thing in names if thing.real],
        [value(thing) for thing in names if not thing.real],
    )


# --- telling --------------------------------------------------------------------------------------


def record_of(found: Knowledge) -> JsonObject:
    """Return what is kept of a measurement, for a manifest."""
    return {
        "scores": [
            line._asdict()
            | {
                "interval": line.interval._asdict(),
                "obscure_interval": line.obscure_interval and line.obscure_interval._asdict(),
            }
            for line in found.lines
        ],
        "best": found.best,
        "separates": found.separates,
        "rule": RULE,
        "chosen": found.chosen._asdict(),
        "reported": found.reported._asdict(),
        "curve": [one._asdict() for one in found.curve],
        "twins": found.twins,
        "verdict": verdict_of(found),
    }


def format_knowledge(found: Knowledge) -> str:
    """Format the scores as a table, with the verdict below it."""
    head = f"{'score':<13}{'higher for':<12}{'AUC':<24}{'obscure real names':<24}"
    lines = [head.rstrip(), "-" * len(head)]
    for line in found.lines:
        name = f"{line.score} *" if line.score == found.best else line.score
        obscure = "" if line.obscure is None else _range(line.obscure, line.obscure_interval)
        row = f"{name:<13}{line.higher_for:<12}{_range(line.auc, line.interval):<24}{obscure}"
        lines.append(row.rstrip())
    told = (
        f"{found.twins['reporting']} real names, each beside an invented one of about its length; "
        "* best on the other half"
    )
    return "\n".join([*lines, "", told, verdict_of(found)])


def verdict_of(found: Knowledge) -> str:
    """Say in words how much the scores tell."""
    best, control = found.line(found.best), found.line(CONTROL)
    area = _range(best.auc, best.interval)
    if not found.separates:
        text = (
            f"No score separates them: the AUC of the best, {best.score}, is {area}, so the pairs "
            "follow what is real and invented, not what the model knows."
        )
    else:
        shares = [
            f"{share:.0%} ({interval.low:.0%} to {interval.high:.0%})"
            for share, interval in _shares(found)
        ]
        text = (
            f"The best score, {best.score}, has an AUC of {area}. At the threshold, chosen on other "
            f"names, {shares[0]} of the invented are doubted and {shares[1]} of the real answered."
        )
    if control.auc >= best.auc:
        text += (
            f" The number of letters alone has {_range(control.auc, control.interval)}: so this "
            "score is no evidence of knowledge."
        )
    return text


def _shares(found: Knowledge) -> list[tuple[float, Interval]]:
    """Return the shares of the reported point, each with its 95% interval."""
    n = found.twins["reporting"]
    shares = (found.reported.doubts_invented, found.reported.answers_real)
    return [(share, wilson(round(share * n), n)) for share in shares]


def _range(value: float, interval: Interval | None) -> str:
    assert interval is not None
    return f"{value:.2f} ({interval.low:.2f} to {interval.high:.2f})"
