"""Distinctive terms: what one side says and the other does not, in any script."""

from __future__ import annotations

from forty2.failures.terms import distinctive, terms_of


def test_terms_are_words_and_pairs_of_words_and_numbers_are_one() -> None:
    assert terms_of("It's 1,200.5 km!") == {"it's", "#", "km", "it's #", "# km"}
    assert terms_of("") == terms_of(" ?! ") == set()


def test_scripts_without_spaces_have_pairs_of_letters() -> None:
    assert {"法国", "国的", "的首"} <= terms_of("法国的首都")


def test_terms_of_one_side_come_first_and_common_ones_do_not_come() -> None:
    inside = [f"how many hours does train {n} take" for n in range(30)]
    outside = [f"how many eggs does cake {n} take" for n in range(30)]
    terms = [term.term for term in distinctive(inside, outside, most=5)]
    assert {"train", "hours"} & {word for term in terms for word in term.split()}
    assert not {"how", "many", "does", "take", "eggs", "how many"} & set(terms)


def test_function_words_come_last() -> None:
    inside = [f"what is it for {'a train' if n % 2 else 'the boat'}" for n in range(40)]
    terms = [one.term for one in distinctive(inside, ["cakes are good"] * 40, most=9)]
    assert {"train", "boat"} <= {word for term in terms[:2] for word in term.split()}
    assert {"for", "what"} <= {*terms[2:]}


def test_no_term_repeats_another() -> None:
    inside = [f"how many hours does train {n} take" for n in range(30)]
    terms = [set(t.term.split()) for t in distinctive(inside, ["cakes are good"] * 30, most=9)]
    assert terms and not any(a <= b for a in terms for b in terms if a is not b)


def test_equal_sides_have_no_distinctive_term() -> None:
    texts = [f"a text number {n} of this kind" for n in range(40)]
    assert distinctive(texts, texts, most=5) == []
    assert distinctive(["same"] * 9, ["same"] * 9, most=5) == []


def test_a_term_of_few_texts_is_not_distinctive() -> None:
    inside = ["zebra zebra zebra zebra", *(f"plain text {n}" for n in range(60))]
    assert "zebra" not in [term.term for term in distinctive(inside, ["plain text"] * 60, most=9)]


def test_shares_are_those_of_texts() -> None:
    (term,) = distinctive(["x"] * 30 + ["y"] * 10, ["y"] * 40, most=1)
    assert (term.term, term.inside, term.outside) == ("x", 0.75, 0.0) and term.z > 1.96


def test_the_order_of_texts_changes_nothing() -> None:
    inside = [f"{word} {other}" for word in "abcdef" for other in "uvw"] * 3
    outside = [f"{word} {other}" for word in "ghijkl" for other in "xyz"] * 3
    assert distinctive(inside, outside, 6) == distinctive(inside[::-1], outside[::-1], 6)
