"""Pages on a phone: a table that has to be scrolled says so, and words stay whole."""

from __future__ import annotations

import re

import pytest

from forty2.report.markdown import Table
from forty2.report.page import is_wider_than_a_phone, render


@pytest.mark.parametrize(
    ("head", "row", "wider"),
    [
        (("Stage", "Facts", "Leaks"), ("phase1_sft", "42.0%", "0.0%"), False),
        (("Stage", "A head of many words"), ("base", "1"), False),
        (
            ("Stage", "Score"),
            ("base", "some words that can be wrapped as often as it takes"),
            False,
        ),
        (("Stage", *"abcdef"), ("phase1_sft", *["+0.1000"] * 6), True),
        (("A stage",), ("one that is wide and is not wrapped, as it is the first",), True),
        (("Stage", "Score"), (), False),
    ],
)
def test_a_table_is_wider_than_a_phone_by_what_is_not_wrapped(
    head: tuple[str, ...], row: tuple[str, ...], wider: bool
) -> None:
    assert is_wider_than_a_phone(Table(head, [row] if row else [])) == wider


def test_a_wide_table_says_so_on_a_phone_and_tables_of_texts_are_stacked() -> None:
    row = ("phase1_sft", *["+0.1000"] * 6)
    page = render(
        "sweep.html.jinja",
        **dict.fromkeys(("name", "about", "sentence", "charts_note", "grid", "recipe"), ""),
        **dict.fromkeys(("confirmed", "charts", "parallel"), ()),
        tables=[("Scores", Table(("Stage", *"abcdef"), [row]), "")],
        origin=Table(("Source", "Value"), [("sha256", "0" * 64)]),
    )
    assert page.count('class="wide scrolls"') == 1 and "Scroll sideways" in page
    assert re.search(r'<td class="number" data-name="Value">0{64}</td>', page)
    assert ".text td::before { content: attr(data-name)" in page
