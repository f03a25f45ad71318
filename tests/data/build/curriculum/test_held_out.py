"""What is held out: a fixed part, by the text alone."""

from __future__ import annotations

from forty2.data.build.curriculum.held_out import held_out_names, is_held_out


def test_about_a_sixth_is_held_out_whatever_its_case_and_punctuation() -> None:
    texts = [f"Say {n}." for n in range(3_000)]
    held = [text for text in texts if is_held_out(text)]
    assert 0.14 < len(held) / len(texts) < 0.19
    assert all(is_held_out(text.upper().replace(".", "  !")) for text in held)


def test_every_group_of_names_has_some_and_not_too_many() -> None:
    names = [f"{group}-{n:02d}" for group in ("anti-en", "anti-de", "copy-en") for n in range(13)]
    held = held_out_names([*names, "pair-en-1", "pair-en-2"])
    for group, count in (("anti-en", 2), ("anti-de", 2), ("copy-en", 2), ("pair-en", 1)):
        assert sum(name.startswith(group) for name in held) == count
    assert held == held_out_names(reversed([*names, *names, "pair-en-2", "pair-en-1"]))
