"""Markdown: what a run says stays text."""

from __future__ import annotations

import pytest
from markdown_it import MarkdownIt

from forty2.report.markdown import Table, code_lines, escape, table_lines

FIGURES = [
    "0.312",
    "+0.0290",
    "12.5%",
    "1,234",
    "+0.1 (-0.2 to +0.4), gain",
    "2026-11-26 01:54 UTC",
]
HOSTILE = [
    "<b>x</b>",
    "[a](http://b)",
    "http://a.example",
    "www.example.com",
    "me@example.com",
    "`code` ``more``",
    "*bold*",
    "&lt;",
    "a, b.c: d",
]


def rendered(text: str) -> str:
    html: str = MarkdownIt("js-default", {"html": True, "linkify": False}).render(text)
    return html


@pytest.mark.parametrize("text", FIGURES)
def test_figures_and_words_stand_as_they_are(text: str) -> None:
    assert escape(text) == text


@pytest.mark.parametrize("text", HOSTILE)
def test_what_could_be_markup_is_a_code_span(text: str) -> None:
    assert escape(text).startswith("`") and escape(text).endswith("`")
    html = rendered(f"x {escape(text)} y")
    assert "<code>" in html and "<a" not in html and "<b>" not in html and "<strong>" not in html


def test_a_table_has_a_cell_per_value_whatever_they_say() -> None:
    lines = table_lines(Table(("Stage", "a|b"), [("x | y", "\n| z |\n"), ("<i>", "0.5")]))
    html = rendered("\n".join(lines))
    assert html.count("<tr>") == 3 and html.count("<td>") == 4 and html.count("<th>") == 2
    assert "<i>" not in html


@pytest.mark.parametrize("text", [r"(^|\D)18($|\D)", "a|b", r"\|", "``|``"])
def test_a_bar_in_a_cell_stays_a_bar(text: str) -> None:
    html = rendered("\n".join(table_lines(Table(("Pattern",), [(text,)]))))
    assert html.count("<td>") == 1 and f"<code>{text}</code>" in html


def test_nothing_in_a_code_block_ends_it() -> None:
    html = rendered("\n".join(code_lines("a\n```\n````\n<b>\n", "yaml")))
    assert html.count("<pre>") == 1 and "<b>" not in html and "````\n&lt;b&gt;" in html
