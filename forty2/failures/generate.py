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
import functools
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from forty2.benchmark.partial_results import PartialResults
from forty2.data.checks.near_duplicates import NearDuplicates
from forty2.data.records import Message
from forty2.data.strata import largest_remainder
from forty2.errors import DataError, printable
from forty2.failures.asking import Asker, Limits, Request, Tokens, estimate
from forty2.failures.builtin import harder, is_made
from forty2.failures.chat_models import ChatModel
from forty2.failures.clustering import CLUSTERS, read_cluster_items, read_clusters
from forty2.failures.examples import (
    ABOUT_GENERATED,
    ARMS,
    GENERATED,
    Arm,
    Example,
    chat_of,
    write_examples,
)
from forty2.failures.folder import (
    HALVES,
    Half,
    Item,
    about_testset,
    item_id,
    read_half,
    read_if_same,
)
from forty2.failures.labels import LABELS, is_held_out
from forty2.failures.scored import read_scored
from forty2.failures.teaching import SHOWN, parse_proposal, proposal_prompt
from forty2.failures.testset import question_text, text_key, twin_groups
from forty2.failures.training_data import TrainingSearch
from forty2.failures.verifiers import CheckFailed, UnitTest, check, parse_verifier
from forty2.files import JsonObject, file_sha256, read_json, write_json
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


class Proposal(NamedTuple):
    """A question that a teacher made."""

    messages: tuple[Message, ...]
    reply: str
    verifier: JsonObject | None
    reference: str | None
    source: str


@dataclass
class Target:
    """What rows are made for: a cluster, or the random arm.

    Each of its rows has items that it is made after, and is asked for again until one can be kept. So
    what is refused more often is not rarer among the rows.
    """

    arm: Arm
    cluster: int | None
    label: str
    """What its questions are about; "": not known."""
    wanted: int
    pool: Sequence[Item]
    """Items that its questions are made after."""
    tries: Counter[int] = field(default_factory=Counter)
    """Times that each row was asked for."""
    filled: set[int] = field(default_factory=set)
    """Numbers of the rows that are kept."""
    refused: Counter[str] = field(default_factory=Counter)
    _by_stratum: dict[str, list[Item]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        for item in self.pool:
            self._by_stratum[item.stratum].append(item)

    @property
    def name(self) -> str:
        """Its name in the journal."""
        return self.arm if self.cluster is None else f"{self.arm}/{self.cluster}"

    def missing(self, trial: int | None) -> list[int]:
        """Return the numbers of the rows to ask for next.

        Args:
            trial: number of requests after which one must have been kept.
        """
        left = [number for number in range(self.wanted) if number not in self.filled]
        if trial is None or self.filled:
            return left
        return left[: max(0, trial - self.tries.total())]

    def draw(self, seed: int, number: int) -> Draw:
        """Draw the items that a row is made after; they are the same each time that it is asked for."""
        rng = random.Random(f"{seed} {self.name} {number}")
        first = rng.choice(self.pool)
        alike = self._by_stratum[first.stratum] if self.cluster is None else self.pool
        others = rng.sample(alike, min(len(alike), SHOWN))
        items = [first, *(item for item in others if item is not first)][:SHOWN]
        return Draw(self, number, self.tries[number], items)

    def figures(self) -> JsonObject:
        """Return what is recorded of it."""
        return {
            "arm": self.arm,
            "cluster": self.cluster,
            "label": self.label,
            "wanted": self.wanted,
            "asked": self.tries.total(),
            "refused": dict(sorted(self.refused.items())),
            "kept": len(self.filled),
        }


class Draw(NamedTuple):
    """One question to be made."""

    target: Target
    number: int
    """Number of the row."""
    attempt: int
    items: Sequence[Item]
    """Items to make it after; the first gives its stratum and system message."""

    @property
    def key(self) -> str:
        """Name of its request in the journal."""
        return f"{self.target.name}/{self.number}/{self.attempt}"


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
        found = parse_proposal(answer["said"], draw.items)
        if isinstance(found, str):
            return found
        return Proposal(found.messages, found.reply, found.verifier, None, self._source)


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
    targets, notes, sentence = _targets(folder, size, model is None)
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
        return _record(header, targets, notes, sentence, [], None, limits) | {"estimate": expected}
    if out.exists() and (before := read_if_same(out, header, "made"))["complete"]:
        return before
    with PartialResults.open(out, header, resume=True) as partial, contextlib.ExitStack() as stack:
        asker = None
        maker: _Teacher = _Generators(seed)
        if model is not None:
            asker = Asker(
                functools.cache(functools.partial(stack.enter_context, model.open())),
                partial,
                stage="requests",
                seed=seed,
                temperature=settings.temperature,
                max_tokens=settings.max_tokens,
                limits=limits,
                progress=progress,
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
        "clusters_sha256": file_sha256(folder / CLUSTERS),
        "labels_sha256": file_sha256(labels) if labels.exists() else None,
    }


def _targets(folder: Path, size: int, builtin: bool) -> tuple[list[Target], list[str], str]:
    """Return what questions are made for, what to say of it, and the finding in a sentence."""
    record = read_clusters(folder)
    worse = [cluster for cluster in record["clusters"] if cluster["worse"]]
    if not worse:
        return [], [], f"{record['sentence']} There is nothing to teach."
    labels = _labels(folder, needed=not builtin)
    failed, clusters = _failed(folder)
    half = [item for item in read_half(folder, "find") if not is_held_out(item)]
    pools: dict[int, list[Item]] = {}
    notes = []
    for number in (cluster["cluster"] for cluster in worse):
        own = [item for item in half if item.id in failed and clusters[item.id] == number]
        pools[number] = [item for item in own if not builtin or is_made(item.source)]
        if builtin and len(pools[number]) < len(own):
            others = len(own) - len(pools[number])
            notes.append(
                f"cluster {number}: {others:,} of {len(own):,} failures were not made by the built-in "
                "generators, which cannot make others like them; a chat model as `teacher` can"
            )
        elif not own:
            notes.append(f"cluster {number}: every failure of it is held out to check its label")
    sizes = {number: len(pool) for number, pool in pools.items() if pool}
    if not sizes:
        raise DataError(f"{folder}: nothing to make questions after; {'; '.join(notes)}")
    shares = largest_remainder(sizes, size)
    targets = [
        Target("targeted", number, labels.get(number, ""), shares[number], pools[number])
        for number in sizes
        if shares[number]
    ]
    everything = [item for item in half if not builtin or is_made(item.source)]
    if len(everything) < len(half):
        notes.append(
            f"random: {len(half) - len(everything):,} of {len(half):,} items were not made by the "
            "built-in generators, so none is made after them"
        )
    targets.append(Target("random", None, "", size, everything))
    return targets, notes, ""


def _failed(folder: Path) -> tuple[set[str], Mapping[str, int]]:
    """Return the items that failed, and the cluster of every scored item."""
    items, clusters = read_scored(folder).items, read_cluster_items(folder)
    if {item.id for item in items} != clusters.keys():
        raise DataError(
            f"{folder / CLUSTERS}: is of other items than those with a verdict now; "
            f"run forty2 failures cluster {folder} again"
        )
    return {item.id for item in items if item.failed}, clusters


def _labels(folder: Path, *, needed: bool) -> dict[int, str]:
    """Return the labels that sort held-out items above chance, by cluster."""
    path = folder / LABELS
    if not path.exists() and not needed:
        return {}
    if not path.exists():
        raise DataError(f"{path}: no such file; make it with forty2 failures label {folder}")
    record = read_json(path)
    if record.get("clusters_sha256") != file_sha256(folder / CLUSTERS):
        raise DataError(f"{path}: is of earlier clusters; run forty2 failures label {folder} again")
    return {one["cluster"]: one["label"] for one in record["labels"] if not one["weak"]}


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
    pool = _Pool(folder) if targets else None
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


class _Pool:
    """Questions made so far, and what they must not repeat."""

    def __init__(self, folder: Path) -> None:
        self._copies = _Copies(folder)
        self._seen: set[bytes] = set()
        self._near = NearDuplicates()
        self._taken: list[tuple[Draw, Proposal]] = []
        self._is_left: list[bool] = []

    def take(self, draw: Draw, made: Proposal) -> str | None:
        """Take a question in; return why it is refused, or None."""
        if (wrong := _own_check(made)) is not None:
            return wrong
        text = question_text(made.messages)
        key = text_key(text)
        if key in self._seen:
            return "copy of another row"
        try:
            copied = self._copies.half(made)
        except DataError:
            return "no chat that can be trained on"
        if copied is not None:
            return f"copy of the half {copied}"
        self._seen.add(key)
        self._near.add(text)
        self._taken.append((draw, made))
        self._is_left.append(True)
        return None

    def drop_near_copies(self) -> None:
        """Drop what nearly repeats an earlier question."""
        for group in self._near.groups():
            for place in group[1:].tolist():
                if self._is_left[place]:
                    self._is_left[place] = False
                    self._taken[place][0].target.refused["near copy of another row"] += 1

    def fill(self, targets: Sequence[Target]) -> None:
        """Tell each target which of its rows are kept."""
        for target in targets:
            target.filled = {draw.number for draw, _ in self._left() if draw.target is target}

    def rows(self) -> list[Example]:
        """Return the questions that are kept, by target and number."""
        left = sorted(
            self._left(),
            key=lambda one: (
                ARMS.index(one[0].target.arm),
                one[0].target.cluster or 0,
                one[0].number,
            ),
        )
        groups = twin_groups([question_text(made.messages) for _, made in left])
        return [
            Example(
                id=item_id(made.messages, made.verifier, made.reply),
                arm=draw.target.arm,
                cluster=draw.target.cluster,
                stratum=draw.items[0].stratum,
                messages=made.messages,
                reply=made.reply,
                verifier=made.verifier,
                reference=made.reference,
                source=made.source,
                group=group,
            )
            for (draw, made), group in zip(left, groups, strict=True)
        ]

    def _left(self) -> list[tuple[Draw, Proposal]]:
        return [one for one, is_left in zip(self._taken, self._is_left, strict=True) if is_left]


def _own_check(made: Proposal) -> str | None:
    """Check a reply by its own verifier; unit tests run when the rows are scored, in the sandbox."""
    if made.verifier is None:
        return None
    verifier = parse_verifier(made.verifier, made.source)
    if isinstance(verifier, UnitTest):
        return None
    try:
        return None if check(verifier, made.reply).passed else "reply fails its own verifier"
    except CheckFailed:
        return "verifier cannot be checked"


class _Copies:
    """Says whether a row copies a question of the test set: as a prompt, nearly, or 13 words of it.

    This is the one place of this step that reads the untouched half, and yes or no is all that it says.
    """

    def __init__(self, folder: Path) -> None:
        halves = [read_half(folder, half) for half in HALVES]
        self._find = len(halves[0])
        every = [item for half in halves for item in half]
        self._search = TrainingSearch(
            [item.messages for item in every], [item.group for item in every]
        )

    def half(self, made: Proposal) -> Half | None:
        """Return the half of which a row holds a question; None: of neither."""
        hits = self._search.find(chat_of(made.messages, made.reply, made.source))
        return (HALVES[min(hits) >= self._find]) if hits else None


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
    spent = asker.spent if asker is not None else Tokens()
    return {
        **header,
        "sentence": sentence or _sentence(arms, ended, limits),
        "complete": not ended,
        "arms": arms,
        "targets": [target.figures() for target in targets],
        "notes": list(notes),
        "tokens": {**spent._asdict(), "estimated": asker.estimated if asker is not None else 0},
        "cost": limits.price(spent) if asker is not None else None,
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
