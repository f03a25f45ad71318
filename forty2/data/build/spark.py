"""The spark sets: isotopes for SFT, pairs for DPO, and the boost against invented things.

Every source row (fact, myth, entity ...) goes wholly to training or wholly to validation before
pairs are composed from it, so no validation prompt or entity is ever trained on.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from forty2.data.build.splitting import Row, Split, shuffled, split_by
from forty2.data.library import isotopes, material, rows
from forty2.errors import DataError

FULL_PER_ROW = {"anti_leakage": 3, "myth_rejection": 3}
"""Pairs from one row of the library in a set of no given size; of other types one."""
BALANCE = 0.05
"""Share of plain question-and-answer rows among the isotopes."""
DPO_SHARES = {"anti_leakage": 49, "myth_rejection": 57, "appropriate_activation": 20}
BOOST_SHARES = {"soft_falsehood": 56, "anachronism": 27, "real_thing": 12}

CLAIMS = (
    "I know this one.",
    "I can tell you.",
    "I can answer that.",
    "Yes, I know it.",
    "I have that at hand.",
    "I am happy to say.",
    "That I can tell you.",
    "I know it well.",
)
"""How a claim to know can open."""


def sft(seed: int, size: int | None, balance: float = BALANCE) -> Split:
    """Isotopes, stratified by element, and a share of plain answers.

    Args:
        balance: the share of plain answers among the training rows.

    Raises:
        DataError: the library has too few plain answers for it.
    """
    shaped = split_by(isotopes(), seed, lambda row: str(row["element"]))
    plain = split_by(rows("plain"), seed, lambda row: "plain")
    wanted = size if size is not None else round(len(shaped.train) / (1 - balance))
    plain_rows = round(wanted * balance)
    if plain_rows > len(plain.train):
        raise DataError(
            f"a balance of {balance:g} needs {plain_rows} plain answers, "
            f"the library has {len(plain.train)}"
        )
    train = _spread(shaped.train, wanted - plain_rows, seed, lambda row: str(row["element"]))
    train += [{**row, "element": "plain"} for row in plain.train[:plain_rows]]
    valid = [
        *shaped.valid,
        *({**row, "element": "plain"} for row in plain.valid[: len(plain.valid) // 4]),
    ]
    return Split(shuffled(map(_chat, train), seed), shuffled(map(_chat, valid), seed))


def dpo(seed: int, size: int | None) -> Split:
    """Anti-leakage, myth rejection and appropriate activation."""
    sources = {
        "anti_leakage": (rows("facts"), _leak_pairs),
        "myth_rejection": ((*rows("myths_a"), *rows("myths_b")), _myth_pairs),
        "appropriate_activation": (rows("activation"), _given_pairs),
    }
    return _pairs(sources, DPO_SHARES, seed, size)


def boost(seed: int, size: int | None) -> Split:
    """Invented things and anachronisms, and real but obscure things that must not be refused."""
    sources = {
        "soft_falsehood": (rows("entities"), _invented_pairs),
        "anachronism": (rows("anachronisms"), _given_pairs),
        "real_thing": (rows("real_pairs"), _real_pairs),
    }
    return _pairs(sources, BOOST_SHARES, seed, size)


# --- composing ------------------------------------------------------------------------------------

Compose = Callable[[Mapping[str, Any], random.Random], Iterator[Row]]


def _leak_pairs(fact: Mapping[str, Any], generator: random.Random) -> Iterator[Row]:
    """The plain answer over a hedge of about its length, one for each style of hedging.

    Hedges run long. Paired with short answers they taught the starter model to be short, not to be
    direct (perplexity +25%), so each answer meets the hedges nearest to it in length.
    """
    for style in shuffled(rows("hedges"), generator.random()):
        detailed = "detail" in fact and generator.random() < 0.5
        chosen = f"{fact['answer']} {fact['detail']}" if detailed else str(fact["answer"])
        hedges = [
            _sentence(hedge.replace("{answer}", fact["answer"]).replace("{short}", fact["short"]))
            for hedge in style["variants"] + style["brief"]
        ]
        hedges.sort(key=lambda hedge: abs(len(hedge) - len(chosen)))
        yield {
            "id": f"{fact['id']}-{style['id']}",
            "prompt": fact["question"],
            "chosen": chosen,
            "rejected": generator.choice(hedges[:2]),
            "category": fact["category"],
            "difficulty": "easy",
            "style": style["style"],
        }


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _myth_pairs(myth: Mapping[str, Any], generator: random.Random) -> Iterator[Row]:
    """True answers against false ones, each used about equally often."""
    true, false = list(myth["true"]), list(myth["false"])
    for n in range(max(len(true), len(false))):
        yield {
            "id": f"{myth['id']}-{n + 1}",
            "prompt": myth["question"],
            "chosen": true[n % len(true)],
            "rejected": false[n % len(false)],
            "category": myth["category"],
            "difficulty": myth["difficulty"],
        }


def _real_pairs(row: Mapping[str, Any], generator: random.Random) -> Iterator[Row]:
    """A real but obscure thing: the answer over not knowing it, in the words of invented ones."""
    (pair,) = _given_pairs(row, generator)
    pair["chosen"] = _claimed(pair["chosen"], generator)
    own = material("entity_questions")
    if generator.random() < 0.5:
        noun = own["kinds"][row["kind"]]["noun"]
        refusal = generator.choice(own["refusals"])
        pair["rejected"] = refusal.format(name=row["name"], noun=noun)
    yield {**pair, "entity": row["name"]}


def _invented_pairs(row: Mapping[str, Any], generator: random.Random) -> Iterator[Row]:
    """The pair written about an invented thing, then ones composed for its kind."""
    (pair,) = _given_pairs(row, generator)
    yield {**pair, "rejected": _claimed(pair["rejected"], generator), "entity": row["name"]}
    own = material("entity_questions")
    kind = own["kinds"][row["kind"]]
    refusals = shuffled(own["refusals"], generator.random())
    for n, asked in enumerate(shuffled(kind["questions"], generator.random())):
        given = {
            "name": row["name"],
            "noun": kind["noun"],
            "town": generator.choice(own["towns"]),
            "number": generator.randint(3, 90),
            "year": generator.randint(1710, 1990),
        }
        yield {
            "id": f"{row['id']}-{n + 2}",
            "prompt": asked["question"].format(**given),
            "chosen": refusals[n].format(**given),
            "rejected": _claimed(asked["claim"].format(**given), generator),
            "category": row["kind"],
            "difficulty": "medium",
            "entity": row["name"],
        }


def _claimed(answer: str, generator: random.Random) -> str:
    """One that claims to know.

    Who does not know says "I", who knows seldom does: that word alone told 19 of 20 pairs apart. So
    a third of the answers speak of themselves too.
    """
    opening = generator.random() < 1 / 3
    return f"{generator.choice(CLAIMS)} {answer}" if opening else answer


def _given_pairs(row: Mapping[str, Any], generator: random.Random) -> Iterator[Row]:
    """Rows that were written as pairs."""
    yield {
        "id": row["id"],
        "prompt": row.get("prompt") or row["question"],
        "chosen": row["chosen"],
        "rejected": row["rejected"],
        "category": row.get("category") or row["kind"],
        "difficulty": row.get("difficulty", "medium"),
    }


def _pairs(
    sources: Mapping[str, tuple[Sequence[Mapping[str, Any]], Compose]],
    shares: Mapping[str, int],
    seed: int,
    size: int | None,
) -> Split:
    """Compose each type's pairs; `size` keeps the types' shares as far as each has pairs."""

    train: dict[str, list[Row]] = {}
    valid: list[Row] = []
    for kind, (source, compose) in sources.items():
        split = split_by(source, seed, lambda row: str(row.get("category") or row.get("kind")))
        generator = random.Random(f"{seed}-{kind}")
        most = FULL_PER_ROW.get(kind, 1) if size is None else None
        # First every row's first pair, then every second one: a small set repeats no prompt.
        composed = [
            [{"pair_type": kind, **pair} for pair in islice(compose(row, generator), most)]
            for row in split.train
        ]
        train[kind] = [pair for turn in _turns(composed) for pair in turn]
        valid += [{"pair_type": kind, **next(compose(row, generator))} for row in split.valid]
    if size is not None:
        counts = _apportion(shares, size, {kind: len(pairs) for kind, pairs in train.items()})
        train = {kind: pairs[: counts[kind]] for kind, pairs in train.items()}
    chosen = [pair for pairs in train.values() for pair in pairs]
    return Split(shuffled(chosen, seed), shuffled(valid, seed))


def _turns(groups: Sequence[Sequence[Row]]) -> Iterator[list[Row]]:
    for n in range(max(map(len, groups), default=0)):
        yield [group[n] for group in groups if n < len(group)]


def _apportion(
    shares: Mapping[str, int], size: int, available: Mapping[str, int]
) -> dict[str, int]:
    """Whole numbers in the ratio of `shares` that add up to `size`, none above what is available."""
    counts = dict.fromkeys(shares, 0)
    left = min(size, sum(available.values()))
    while left:
        open_kinds = [kind for kind in shares if counts[kind] < available[kind]]
        # The kind furthest behind its share comes next.
        nearest = min(open_kinds, key=lambda kind: (counts[kind] + 1) / shares[kind])
        counts[nearest] += 1
        left -= 1
    return counts


def _spread(
    source: Sequence[Row], size: int, seed: int, stratum: Callable[[Row], str]
) -> list[Row]:
    """So many rows, the same number from each stratum as far as each has them."""
    groups: dict[str, list[Row]] = {}
    for row in source:
        groups.setdefault(stratum(row), []).append(row)
    return [row for turn in _turns([groups[name] for name in sorted(groups)]) for row in turn][
        :size
    ]


def _chat(row: Row) -> Row:
    return {key: value for key, value in row.items() if key != "contrast"}
