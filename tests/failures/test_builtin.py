"""Questions made by programs: every reference passes, the same seed makes the same, and none is empty."""

from __future__ import annotations

import itertools

import pytest

from forty2.failures.builtin import KINDS, made_items
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
    own = [(source, one) for source, one in made if source.startswith(f"builtin:{name}-")]
    assert len({source for source, _ in own}) >= 2, "questions of several levels"
    assert len({one.prompt for _, one in own}) > 0.95 * len(own)


def test_a_stratum_of_ones_own_has_none() -> None:
    assert list(made_items("law", 1)) == []
