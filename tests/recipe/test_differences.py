"""What differs between two recipes is named key by key."""

from __future__ import annotations

from forty2.recipe.differences import differences


def test_every_key_that_differs_is_named_with_both_values() -> None:
    before = {
        "seed": 1,
        "phases": {"sft": {"lr": 0.1, "steps": 5}, "dpo": {"beta": 0.1}},
        "fuse": None,
    }
    after = {
        "seed": 1,
        "phases": {"sft": {"lr": 0.2, "steps": 5, "best": None}},
        "fuse": {"out": "x"},
    }
    assert [str(one) for one in differences(before, after)] == [
        "phases.sft.lr: 0.1 → 0.2",
        "phases.dpo.beta: 0.1 → absent",
        "fuse: null → absent",
        "phases.sft.best: absent → null",
        "fuse.out: absent → x",
    ]
    assert list(differences(before, before)) == []


def test_a_long_value_is_cut() -> None:
    (found,) = differences({"text": "a"}, {"text": "b" * 100})
    assert str(found) == "text: a → " + "b" * 59 + "…"
