"""Tags around thoughts, in every spelling that chat templates use."""

from __future__ import annotations

import pytest

from forty2.data.thoughts import (
    begins_anew,
    closes_again,
    closes_unopened,
    closing_of,
    closings,
    continued,
    tag_alone,
    tag_at_end,
)

PAIRS = [
    ("<think>", "</think>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("<|think|>", "<|/think|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|thinking_start|>", "<|thinking_end|>"),
]
pairs = pytest.mark.parametrize(("opening", "closing"), PAIRS)


@pairs
def test_a_tag_opens_what_the_other_closes(opening: str, closing: str) -> None:
    assert closing_of(opening) == closing
    assert tag_at_end(f"<|im_start|>assistant\n{opening}\n ") == opening
    assert tag_at_end(f"{opening}\n{closing}") == tag_at_end(f"{opening} a") == ""


@pairs
def test_a_text_is_a_tag_alone_or_with_the_one_that_closes_it(opening: str, closing: str) -> None:
    assert tag_alone(f"\n{opening}\n") == (opening, False)
    assert tag_alone(f"{opening}{closing}") == tag_alone(f"\n{opening}\n\n{closing}\n\n")
    assert tag_alone(f"{opening}{closing}") == (opening, True)
    for other in ("", "a", closing, f"a{opening}", f"{opening}a", f"{opening}{closing}a"):
        assert tag_alone(other) is None


@pairs
def test_an_answer_goes_on_in_the_tag_that_its_prompt_has_opened(
    opening: str, closing: str
) -> None:
    answer = f"One.{closing}{opening}"
    assert continued(opening, f"\n{opening}\n{answer}") == continued(opening, answer) == answer
    assert continued("", f"{opening}{answer}") == f"{opening}{answer}"


@pairs
def test_a_thought_begins_anew_behind_one_that_is_closed(opening: str, closing: str) -> None:
    thought = f"{opening}\nOne.\n{closing}\n\nYes."
    assert begins_anew(f"a{opening}\n\n{closing}\n\n", thought)
    assert begins_anew(f"a{opening}", f"{closing}\n{thought}")
    assert not begins_anew("a", thought)
    assert not begins_anew(f"a{opening}\n\n{closing}\n\n", "Yes.")
    assert not begins_anew(f"a{opening}\n\n{closing}\n\n", f"What is {thought}")
    assert not begins_anew("a</b>", "<b>")


@pairs
def test_a_tag_may_close_what_nothing_has_opened(opening: str, closing: str) -> None:
    assert closings(f"a{opening}b{closing}c</b>{closing}") == [closing, closing]
    assert closes_unopened(f"a{closing}{opening}") == closing
    assert closes_unopened(f"a{opening}b{closing}c{closing}") == ""
    assert closes_unopened(f"a{closing}b{opening}c{closing}") == closing
    assert closes_unopened("<b>bold</b>") == closes_unopened('<reason id="1">a</reason>') == ""


@pairs
def test_an_answer_may_close_a_thought_that_is_closed_already(opening: str, closing: str) -> None:
    for prompt in (f"a{opening}\n\n{closing}\n\n", f"a{closing}"):
        assert closes_again(prompt, f"One.{closing}Yes.")
        assert not closes_again(prompt, f"{opening}One.{closing}Yes.")
        assert not closes_again(prompt, "Yes.")
    assert closes_again(f"a{opening}\n", f"\n{closing}One.{closing}Yes.")
    assert not closes_again(f"a{opening}\n", f"One.{closing}Yes {closing}")
    assert not closes_again("a</b>", "One.</b>") and not closes_again("a", f"One.{closing}Yes.")
