"""The spark sets: isotopes for SFT, pairs for DPO, and the boost against invented things.

And `narrow`, a bad example: isotopes that only hedge, to show what such a set does to a model.

Every source row (fact, myth, entity ...) goes to training or to validation before pairs are
composed from it, so no validation prompt or entity is ever trained on.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice

from forty2.data.build.twins import pair_twins
from forty2.data.library import isotopes, material, rows
from forty2.data.splitting import Row, Split, seeded_order, split_by_stratum
from forty2.data.strata import round_robin
from forty2.errors import DataError

FULL_PER_ROW = {"anti_leakage": 3, "myth_rejection": 3}
"""Most pairs composed from one row of the library if no size is given; other types: one."""
BALANCE = 0.05
"""Share of plain question-and-answer rows among the isotopes."""
DPO_SHARES = {"anti_leakage": 49, "myth_rejection": 57, "appropriate_activation": 20}
BOOST_SHARES = {"soft_falsehood": 56, "anachronism": 27, "real_thing": 12}
EVEN_SHARES = {"soft_falsehood": 34, "anachronism": 27, "real_thing": 34}

HEDGING: Mapping[str, tuple[str, ...]] = {
    "soliton": (
        "no-inside-view",
        "memory-limits",
        "explanation-doubt",
        "time-and-continuity",
        "hidden-goals",
        "inner states",
    ),
    "limiter": (
        "no-access",
        "missing-context",
        "cannot-examine",
        "cannot-act",
        "private facts",
        "live information",
        "missing context",
        "medical specifics",
        "legal and money",
    ),
    "calibrator": (
        "open-question",
        "range-estimate",
        "likely",
        "own-memory",
        "conflicting-signs",
        "unknowable future",
        "forecast",
        "contested",
    ),
}
"""Elements of the narrow set, each with its isotopes, and with categories of appropriate activation."""

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
"""Openings of an answer that claims to know."""


def sft(seed: int, size: int | None, balance: float = BALANCE) -> Split:
    """Build the SFT set: isotopes, spread over elements, and a share of plain answers.

    Args:
        size: number of training rows; None: all.
        balance: share of plain answers among the training rows, between 0 and 1.

    Raises:
        DataError: the library has too few plain answers for it.
    """
    shaped = split_by_stratum(isotopes(), seed, lambda row: str(row["element"]))
    plain = split_by_stratum(rows("plain"), seed, lambda row: "plain")
    wanted = size if size is not None else round(len(shaped.train) / (1 - balance))
    plain_rows = round(wanted * balance)
    if plain_rows > len(plain.train):
        raise DataError(
            f"a balance of {balance:g} needs {plain_rows} plain answers, "
            f"the library has {len(plain.train)}"
        )
    train = _spread(shaped.train, wanted - plain_rows, lambda row: str(row["element"]))
    train += [{**row, "element": "plain"} for row in plain.train[:plain_rows]]
    valid = [
        *shaped.valid,
        *({**row, "element": "plain"} for row in plain.valid[: len(plain.valid) // 4]),
    ]
    return Split(
        seeded_order(map(_without_contrast, train), seed),
        seeded_order(map(_without_contrast, valid), seed),
    )


def narrow(seed: int, size: int | None) -> Split:
    """Build the narrow SFT set: a few elements, nothing but hedging, no plain answers.

    Its answers fit their questions, which cannot be answered plainly. What a model lacks after it is
    any example of when to be plain. The rows of appropriate activation are divided as `dpo` divides
    them, so that no validation prompt of that set is trained on with the same seed.
    """
    element_of = {style: element for element, styles in HEDGING.items() for style in styles}
    shaped = split_by_stratum(isotopes(), seed, lambda row: str(row["element"]))
    given = split_by_stratum(rows("activation"), seed, lambda row: str(row["category"]))
    parts = []
    for isotope_rows, pairs in ((shaped.train, given.train), (shaped.valid, given.valid)):
        hedging = [
            _without_contrast(row)
            for row in isotope_rows
            if row["isotope"] in HEDGING.get(row["element"], ())
        ]
        hedging += [
            _as_isotope(row, element_of[row["category"]])
            for row in pairs
            if row["category"] in element_of
        ]
        parts.append(hedging)
    train, valid = parts
    wanted = len(train) if size is None else size
    train = _spread(train, wanted, lambda row: str(row["element"]))
    return Split(seeded_order(train, seed), seeded_order(valid, seed))


def _as_isotope(pair: Row, element: str) -> Row:
    """Return the preferred answer of a pair as an SFT row of an element."""
    return {
        "id": pair["id"],
        "element": element,
        "isotope": pair["category"],
        "messages": [
            {"role": "user", "content": pair["prompt"]},
            {"role": "assistant", "content": pair["chosen"]},
        ],
    }


def dpo(seed: int, size: int | None) -> Split:
    """Build the DPO set: anti-leakage, myth rejection and appropriate activation."""
    sources = {
        "anti_leakage": (rows("facts"), _leak_pairs),
        "myth_rejection": ((*rows("myths_a"), *rows("myths_b")), _myth_pairs),
        "appropriate_activation": (rows("activation"), _given_pairs),
    }
    return _pairs(sources, DPO_SHARES, seed, size)


def boost(seed: int, size: int | None) -> Split:
    """Build the boost: invented things, anachronisms, and real but obscure things not to refuse.

    Invented things are five times as many as real ones, and have longer names: a model can learn to
    doubt long names. `even_boost` has neither fault.
    """
    return _pairs(_boost_sources(), BOOST_SHARES, seed, size)


def even_boost(seed: int, size: int | None) -> Split:
    """Build a boost of as many real as invented things, with names of one length, a pair of each.

    The rows are divided as `boost` divides them with the same seed.
    """
    return _pairs(_boost_sources(), EVEN_SHARES, seed, size, even=True)


def _boost_sources() -> dict[str, tuple[Sequence[Row], Compose]]:
    return {
        "soft_falsehood": (rows("entities"), invented_pairs),
        "anachronism": (rows("anachronisms"), _given_pairs),
        "real_thing": (rows("real_pairs"), _real_pairs),
    }


def _twins_alone(splits: Mapping[str, Split]) -> dict[str, Split]:
    """Leave out real and invented things without a twin of the other kind in the same part."""
    twins = [
        pair_twins(
            splits["real_thing"][part],
            splits["soft_falsehood"][part],
            name=lambda row: str(row["name"]),
            kind=lambda row: row["kind"],
        )
        for part in (0, 1)
    ]
    real, invented = (Split(*([pair[n] for pair in part] for part in twins)) for n in (0, 1))
    return {**splits, "real_thing": real, "soft_falsehood": invented}


# --- composing ------------------------------------------------------------------------------------

Compose = Callable[[Row, random.Random], Iterator[Row]]
"""Makes pairs from one row of the library."""


def _leak_pairs(fact: Row, generator: random.Random) -> Iterator[Row]:
    """Prefer the plain answer to a hedge of about its length, one pair for each style of hedging.

    Hedges are long. Paired with short answers they taught the starter model to be short, not to be
    direct (perplexity +25%), so each answer is paired with the hedges nearest to it in length.
    """
    for style in seeded_order(rows("hedges"), generator.random()):
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


def _myth_pairs(myth: Row, generator: random.Random) -> Iterator[Row]:
    """Prefer true answers to false ones, each used about equally often."""
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


def _real_pairs(row: Row, generator: random.Random) -> Iterator[Row]:
    """Prefer the answer about a real but obscure thing to a refusal worded as for invented ones."""
    (pair,) = _given_pairs(row, generator)
    pair["chosen"] = claimed(pair["chosen"], generator)
    own = material("entity_questions")
    if generator.random() < 0.5:
        noun = own["kinds"][row["kind"]]["noun"]
        refusal = generator.choice(own["refusals"])
        pair["rejected"] = refusal.format(name=row["name"], noun=noun)
    yield {**pair, "entity": row["name"]}


def invented_pairs(row: Row, generator: random.Random) -> Iterator[Row]:
    """Yield the pair written about an invented thing, then pairs composed for its kind."""
    (pair,) = _given_pairs(row, generator)
    yield {**pair, "rejected": claimed(pair["rejected"], generator), "entity": row["name"]}
    own = material("entity_questions")
    kind = own["kinds"][row["kind"]]
    refusals = seeded_order(own["refusals"], generator.random())
    for n, question in enumerate(seeded_order(kind["questions"], generator.random())):
        slots = {
            "name": row["name"],
            "noun": kind["noun"],
            "town": generator.choice(own["towns"]),
            "number": generator.randint(3, 90),
            "year": generator.randint(1710, 1990),
        }
        yield {
            "id": f"{row['id']}-{n + 2}",
            "prompt": question["question"].format(**slots),
            "chosen": refusals[n].format(**slots),
            "rejected": claimed(question["claim"].format(**slots), generator),
            "category": row["kind"],
            "difficulty": "medium",
            "entity": row["name"],
        }


def claimed(answer: str, generator: random.Random) -> str:
    """Let a third of the answers open with a claim to know.

    Answers that admit not knowing say "I", and others seldom do. Without these openings, that word
    alone predicted the preferred side in 19 of 20 pairs.
    """
    opening = generator.random() < 1 / 3
    return f"{generator.choice(CLAIMS)} {answer}" if opening else answer


def _given_pairs(row: Row, generator: random.Random) -> Iterator[Row]:
    """Yield a row that was written as a pair."""
    yield {
        "id": row["id"],
        "prompt": row.get("prompt") or row["question"],
        "chosen": row["chosen"],
        "rejected": row["rejected"],
        "category": row.get("category") or row["kind"],
        "difficulty": row.get("difficulty", "medium"),
    }


def _pairs(
    sources: Mapping[str, tuple[Sequence[Row], Compose]],
    shares: Mapping[str, int],
    seed: int,
    size: int | None,
    *,
    even: bool = False,
) -> Split:
    """Compose each type's pairs; with a `size`, in the ratio of `shares` as far as each has pairs.

    Args:
        even: of real and invented things take twins alone, and compose one pair of each row.
    """
    train: dict[str, list[Row]] = {}
    valid: list[Row] = []
    splits = {
        kind: split_by_stratum(
            source, seed, lambda row: str(row.get("category") or row.get("kind"))
        )
        for kind, (source, _) in sources.items()
    }
    if even:
        splits = _twins_alone(splits)
    for kind, (_, compose) in sources.items():
        split = splits[kind]
        generator = random.Random(f"{seed}-{kind}")
        most = FULL_PER_ROW.get(kind, 1) if size is None or even else None
        # First every row's first pair, then every second one: a small set repeats no prompt.
        composed = [
            [{"pair_type": kind, **pair} for pair in islice(compose(row, generator), most)]
            for row in split.train
        ]
        train[kind] = list(round_robin(composed))
        valid += [{"pair_type": kind, **next(compose(row, generator))} for row in split.valid]
    if size is not None:
        counts = _apportion(shares, size, {kind: len(pairs) for kind, pairs in train.items()})
        train = {kind: pairs[: counts[kind]] for kind, pairs in train.items()}
    chosen = [pair for pairs in train.values() for pair in pairs]
    return Split(seeded_order(chosen, seed), seeded_order(valid, seed))


def _apportion(
    shares: Mapping[str, int], size: int, available: Mapping[str, int]
) -> dict[str, int]:
    """Divide `size` in the ratio of `shares`, none above what is available.

    One at a time goes to the kind with the lowest (count + 1) / share (Jefferson's method), which,
    unlike the largest remainder, can go on when a kind has no more pairs.
    """
    counts = dict.fromkeys(shares, 0)
    left = min(size, sum(available.values()))
    while left:
        open_kinds = [kind for kind in shares if counts[kind] < available[kind]]
        nearest = min(open_kinds, key=lambda kind: (counts[kind] + 1) / shares[kind])
        counts[nearest] += 1
        left -= 1
    return counts


def _spread(source: Sequence[Row], size: int, stratum: Callable[[Row], str]) -> list[Row]:
    """Take `size` rows, the same number from each stratum as far as each has them."""
    groups: dict[str, list[Row]] = {}
    for row in source:
        groups.setdefault(stratum(row), []).append(row)
    return list(islice(round_robin([groups[name] for name in sorted(groups)]), size))


def _without_contrast(row: Row) -> Row:
    return {key: value for key, value in row.items() if key != "contrast"}
