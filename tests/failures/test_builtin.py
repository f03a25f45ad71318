"""Questions made by programs: every reference passes, the same seed makes the same, and none is empty."""

from __future__ import annotations

import itertools
import random
import re

import pytest

from forty2.failures.builtin import KINDS, harder, made_items
from forty2.failures.verifiers import check, parse_verifier

SAMPLE = 150
KIND_NAMES = [(stratum, name) for stratum, kinds in KINDS.items() for name in kinds]


@pytest.mark.usefixtures("programs_run_here")
@pytest.mark.parametrize("stratum", KINDS)
def test_every_reference_passes_and_no_other_items_does(stratum: str) -> None:
    made = [one for _, one in itertools.islice(made_items(stratum, 3), SAMPLE)]
    others = [made[-1], *made]  # the reference of the question before
    wrong = 0
    for one, other in zip(made, others, strict=False):
        verifier = parse_verifier(one.verifier, "built in")
        assert check(verifier, one.reference).passed, one
        wrong += not check(verifier, other.reference).passed
        assert not check(verifier, "").passed
        assert not check(verifier, one.prompt).passed or one.verifier["kind"] != "unit_test"
    assert wrong > 0.9 * SAMPLE


@pytest.mark.parametrize("stratum", KINDS)
def test_the_same_seed_makes_the_same_and_another_does_not(stratum: str) -> None:
    first, again, other = (
        [one.prompt for _, one in itertools.islice(made_items(stratum, seed), 40)]
        for seed in (1, 1, 2)
    )
    assert first == again and len({*first} & {*other}) < 10


@pytest.mark.parametrize(("stratum", "name"), KIND_NAMES)
def test_each_kind_is_there_with_its_levels_and_hardly_repeats(stratum: str, name: str) -> None:
    made = itertools.islice(made_items(stratum, 5), 2 * SAMPLE)
    kind = re.compile(rf"builtin:{name}(/[a-z_]+)?-\d")
    own = [(source, one) for source, one in made if kind.fullmatch(source)]
    assert len({source for source, _ in own}) >= 2, "questions of several levels"
    assert len({one.prompt for _, one in own}) > 0.95 * len(own)


def test_a_stratum_may_be_one_kind_alone_and_no_other_name_has_questions() -> None:
    of_stratum = [*itertools.islice(made_items("tools", 5), 80)]
    alone = [*itertools.islice(made_items("json", 5), 40)]
    assert alone == [one for one in of_stratum if one[0].startswith("builtin:json-")]
    assert not [*made_items("law", 5)]


@pytest.mark.parametrize("stratum", KINDS)
def test_a_harder_question_asks_for_the_same_and_is_one_level_up_if_there_is_one(
    stratum: str,
) -> None:
    made = list(itertools.islice(made_items(stratum, 3), SAMPLE))
    levels: dict[str, set[int]] = {}
    for source, one in itertools.islice(made_items(stratum, 4), 4000):
        levels.setdefault(source.rpartition("-")[0], set()).add(one.level)
    for n, (source, one) in enumerate(made):
        found = harder(source, random.Random(n))
        assert found == harder(source, random.Random(n)) and found is not None
        form = source.rpartition("-")[0]
        above = [level for level in levels[form] if level > one.level]
        assert found[1].level == min(above, default=one.level)
        assert found[0] == f"{form}-{found[1].level}"


def test_nothing_is_harder_than_a_question_that_was_not_made_here() -> None:
    for source in ("rows.jsonl:3", "builtin:law-1", "builtin:dates-x", "builtin:", "mmlu:law:3"):
        assert harder(source, random.Random(1)) is None
    before = harder("builtin:dates-1", random.Random(1))  # a test set from before there were forms
    assert before is not None and before[1].level == 2
    beyond = harder("builtin:strings/words-0", random.Random(1))
    assert beyond is not None and beyond[1].level == 2


def test_a_stratum_of_ones_own_has_none() -> None:
    assert list(made_items("law", 1)) == []
