"""Questions to teach from, with right replies: some for each worse cluster, as many at random.

    targeted   after failures of the worse clusters, in proportion to their number, each harder than
               the one that it is made after
    random     as many, made in the same way after items of the half `find` that are drawn without a
               look at cluster or verdict: the control without which nobody knows whether aiming helps

A teacher is a chat model, or the built-in generators. It sees questions of the half `find` that no
check of the labels holds out. Of the untouched half it sees nothing: whether a row copies that half is
all that is asked of it, and such a row is dropped, as are copies of the other half and of each other.

Every request is a line in the journal `generated.json.part` when it is answered. The same command goes
on after a stop, and ends with the same bytes.
"""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from forty2.benchmark.partial_results import PartialResults
from forty2.data.records import Message
from forty2.errors import printable
from forty2.failures.asking import Asker, Limits, Request, Tokens, estimate, open_asker
from forty2.failures.builtin import harder
from forty2.failures.chat_models import ChatModel
from forty2.failures.clustering import CLUSTERS
from forty2.failures.examples import ABOUT_GENERATED, ARMS, GENERATED, Example, write_examples
from forty2.failures.folder import VERDICTS, about_testset, read_if_same
from forty2.failures.labels import LABELS
from forty2.failures.proposals import Pool
from forty2.failures.targets import Draw, Target, find_targets
from forty2.failures.teaching import Proposal, parse_proposal, proposal_prompt
from forty2.files import JsonObject, file_sha256, write_json
from forty2.progress import Progress, silent

BUILTIN = "builtin"
_ROUNDS = 10
"""Times that a chat model is asked for a row, until one can be kept."""
_MADE_ROUNDS = 50
"""The same of the built-in generators."""
_TRIAL = 16
"""Requests of each target to a chat model until a row is kept; if none of them is, there are no others."""


@dataclass(frozen=True, kw_only=True)
class TeacherSettings:
    """How a teacher is asked."""

    temperature: float = 0.8
    max_tokens: int = 1024
    """Longest reply, with question and answer."""


class _Teacher(Protocol):
    """Makes questions."""

    rounds: int
    """Times that each row is asked for, until one can be kept."""
    trial: int | None
    """Requests of each target after which one must have been kept."""

    def make(self, draws: Sequence[Draw]) -> list[Proposal | str]:
        """Return each question, or why there is none; fewer if the budget ended."""


class _Generators:
    """The built-in generators: the kind of question that a failure is, one level harder.

    Args:
        seed: seed of the questions.
    """

    rounds: int = _MADE_ROUNDS
    trial: int | None = None

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def make(self, draws: Sequence[Draw]) -> list[Proposal | str]:
        return [self._make(draw) for draw in draws]

    def _make(self, draw: Draw) -> Proposal:
        rng = random.Random(f"{self._seed} generate {draw.key}")
        found = harder(draw.items[0].source, rng)
        assert found is not None  # other items are in no pool
        source, made = found
        turns: list[Message] = [{"role": "user", "content": made.prompt}]
        if made.system:
            turns.insert(0, {"role": "system", "content": made.system})
        return Proposal(tuple(turns), made.reference, made.verifier, made.reference, source)


class _ChatTeacher:
    """A chat model."""

    rounds: int = _ROUNDS
    trial: int | None = _TRIAL

    def __init__(self, asker: Asker, source: str) -> None:
        self._asker, self._source = asker, source

    def make(self, draws: Sequence[Draw]) -> list[Proposal | str]:
        requests = [_request(draw) for draw in draws]
        answers = self._asker.ask(requests)
        return [self._read(*one) for one in zip(draws, answers, strict=False)]

    def _read(self, draw: Draw, answer: JsonObject) -> Proposal | str:
        if answer["said"] is None:
            return "no reply"
        return parse_proposal(answer["said"], draw.items, self._source)


def _request(draw: Draw) -> Request:
    return Request(draw.key, proposal_prompt(draw.target.label, draw.items))


def generate(
    folder: str | Path,
    teacher: str | ChatModel = BUILTIN,
    *,
    size: int,
    seed: int = 42,
    settings: TeacherSettings | None = None,
    limits: Limits | None = None,
    dry_run: bool = False,
    progress: Progress = silent,
) -> JsonObject:
    """Make questions with right replies for the worse clusters and at random, and write both files.

    Args:
        folder: a test set whose scored items were clustered and labelled.
        teacher: `builtin`; or the address of an OpenAI-compatible server, `local:MODEL`, or either of
            them with its settings.
        size: rows of each arm.
        limits: how fast a chat model is asked, and what it may cost.
        dry_run: only say what it would cost.

    Returns:
        What generated.json holds.

    Raises:
        DataError: there are no clusters or labels, they are of other items, or the built-in
            generators made none of the failures.
        RunError: a file is missing or has changed, or the folder holds what was made in another way.
        BenchmarkError: the teacher does not work; what it answered is stored.
        ServeError: a local teacher cannot be loaded.
    """
    folder, settings, limits = Path(folder), settings or TeacherSettings(), limits or Limits()
    model = None
    if teacher != BUILTIN:
        model = teacher if isinstance(teacher, ChatModel) else ChatModel(name=teacher)
    targets, notes, sentence = find_targets(folder, size, builtin=model is None)
    header: JsonObject = {
        "teacher": BUILTIN if model is None else model.name,
        "teacher_model": None if model is None else model.model,
        "size": size,
        "seed": seed,
        **(dict.fromkeys(asdict(settings)) if model is None else asdict(settings)),
        **_inputs(folder),
    }
    out = folder / ABOUT_GENERATED
    if dry_run:
        expected = None if model is None else _expected(targets, seed, settings, limits)
        sentence = sentence or f"{size:,} rows for the worse clusters, and as many at random."
        record = _record(header, targets, notes, sentence, [], None, limits)
        return {**record, "estimate": expected}
    if out.exists() and (before := read_if_same(out, header, "made"))["complete"]:
        return before
    with PartialResults.open(out, header, resume=True) as partial, contextlib.ExitStack() as stack:
        asker = None
        maker: _Teacher = _Generators(seed)
        if model is not None:
            asker = stack.enter_context(
                open_asker(
                    model,
                    partial,
                    stage="requests",
                    seed=seed,
                    temperature=settings.temperature,
                    max_tokens=settings.max_tokens,
                    limits=limits,
                    progress=progress,
                )
            )
            maker = _ChatTeacher(asker, model.source)
        kept = _collect(folder, targets, maker, seed, progress)
        write_examples(folder / GENERATED, kept)
        record = _record(header, targets, notes, sentence, kept, asker, limits)
        record["generated_sha256"] = file_sha256(folder / GENERATED)
        if record["complete"]:
            partial.finish(record)
        else:  # with a larger budget, the same command goes on
            write_json(out, record)
    return record


# --- what is wanted -------------------------------------------------------------------------------


def _inputs(folder: Path) -> JsonObject:
    """Return the hashes of what the questions are made from."""
    labels = folder / LABELS
    return {
        "testset_sha256": about_testset(folder)["sha256"],
        "verdicts_sha256": file_sha256(folder / VERDICTS),
        "clusters_sha256": file_sha256(folder / CLUSTERS),
        "labels_sha256": file_sha256(labels) if labels.exists() else None,
    }


def _expected(
    targets: Sequence[Target], seed: int, settings: TeacherSettings, limits: Limits
) -> JsonObject:
    """Estimate what the questions cost if none is refused, with replies as long as they may be."""
    requests, tokens = 0, Tokens()
    for target in targets:
        for number in range(target.wanted):
            text = _request(target.draw(seed, number)).text
            tokens = tokens.plus(Tokens(estimate(text), settings.max_tokens))
        requests += target.wanted
    return {
        "requests": requests,
        "tokens": tokens._asdict(),
        "cost": limits.price(tokens),
        "within_budget": limits.allow(tokens),
    }


# --- making ---------------------------------------------------------------------------------------


def _collect(
    folder: Path, targets: Sequence[Target], teacher: _Teacher, seed: int, progress: Progress
) -> list[Example]:
    """Ask for questions until every target has its own, the teacher has no others, or the budget ends."""
    pool = Pool(folder) if targets else None
    for _ in range(teacher.rounds):
        draws = list(_draws(targets, seed, teacher.trial))
        if not draws or pool is None:
            break
        made = teacher.make(draws)
        for draw, found in zip(draws, made, strict=False):
            draw.target.tries[draw.number] += 1
            reason = found if isinstance(found, str) else pool.take(draw, found)
            if reason is not None:
                draw.target.refused[reason] += 1
        pool.drop_near_copies()
        pool.fill(targets)
        wanted = sum(target.wanted for target in targets)
        progress("rows", sum(len(target.filled) for target in targets), wanted, {})
        if len(made) < len(draws):
            break
    return pool.rows() if pool is not None else []


def _draws(targets: Sequence[Target], seed: int, trial: int | None) -> Iterator[Draw]:
    """Yield the next draws, in proportion, so that a budget that ends leaves the arms alike."""
    places = []
    for n, target in enumerate(targets):
        numbers = target.missing(trial)
        places += [((i + 0.5) / len(numbers), n, number) for i, number in enumerate(numbers)]
    for _, n, number in sorted(places):
        yield targets[n].draw(seed, number)


# --- the record -----------------------------------------------------------------------------------


def _record(
    header: JsonObject,
    targets: Sequence[Target],
    notes: Sequence[str],
    sentence: str,
    kept: Sequence[Example],
    asker: Asker | None,
    limits: Limits,
) -> JsonObject:
    arms: JsonObject = {}
    for arm in ARMS:
        own = [target for target in targets if target.arm == arm]
        refused = sum((target.refused for target in own), Counter[str]())
        arms[arm] = {
            "wanted": sum(target.wanted for target in own),
            "asked": sum(target.tries.total() for target in own),
            "made": sum(target.tries.total() - _unread(target.refused) for target in own),
            "refused": dict(sorted(refused.items())),
            "kept": sum(len(target.filled) for target in own),
            "strata": dict(sorted(Counter(row.stratum for row in kept if row.arm == arm).items())),
        }
    ended = asker is not None and asker.ended
    nothing = {"tokens": {**Tokens()._asdict(), "estimated": 0}, "cost": None}
    return {
        **header,
        "sentence": sentence or _sentence(arms, ended, limits),
        "complete": not ended,
        "arms": arms,
        "targets": [target.figures() for target in targets],
        "notes": list(notes),
        **(asker.costs() if asker is not None else nothing),
        "estimate": None,
        "generated_sha256": None,
    }


UNREAD = ("no reply", "no JSON object", "not in the schema", "verifier not readable")
"""Reasons for which there is no question at all."""


def _unread(refused: Mapping[str, int]) -> int:
    return sum(refused.get(reason, 0) for reason in UNREAD)


def _sentence(arms: JsonObject, ended: bool, limits: Limits) -> str:
    targeted, other = (arms[arm] for arm in ARMS)
    said = (
        f"{targeted['kept']:,} of {targeted['wanted']:,} rows for the worse clusters, and "
        f"{other['kept']:,} of {other['wanted']:,} at random."
    )
    if ended:
        return f"{said} The budget of {limits.budget()} allows no more; with a larger one, go on."
    return said


def format_generated(record: JsonObject) -> str:
    """Format what was made, or what it would cost, for the terminal."""
    expected = record["estimate"]
    lines = [record["sentence"]]
    if record["targets"]:
        lines.append(f"{'for':<14}{'wanted':>8}{'asked':>8}{'kept':>8}")
    for one in record["targets"]:
        name = "random" if one["cluster"] is None else f"cluster {one['cluster']}"
        counts = "".join(f"{one[key]:>8,}" for key in ("wanted", "asked", "kept"))
        lines.append(f"{name:<14}{counts}  {printable(one['label'])}".rstrip())
    for arm, part in record["arms"].items():
        lines += [
            f"refused, {arm}: {count:,}: {reason}" for reason, count in part["refused"].items()
        ]
    if expected is not None:
        tokens = expected["tokens"]
        lines.append(
            f"would send {expected['requests']:,} requests of about {tokens['prompt']:,} tokens, and get "
            f"at most {tokens['reply']:,}{_money(expected['cost'])}; refused rows are asked for again"
        )
        if not expected["within_budget"]:
            lines.append("that is more than the budget, at which it would stop")
    elif sum(record["tokens"][key] for key in ("prompt", "reply")):
        tokens = record["tokens"]
        lines.append(
            f"{tokens['prompt']:,} tokens in prompts and {tokens['reply']:,} in replies"
            f"{_money(record['cost'])}"
        )
    return "\n".join(lines)


def _money(cost: float | None) -> str:
    return "" if cost is None else f", {cost:,.2f} in money"
