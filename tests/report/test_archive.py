"""The page of all runs: texts stay text, no other script runs, and it sorts in a browser."""

from __future__ import annotations

import base64
import hashlib
import re
from html import unescape
from pathlib import Path

import pytest
from report.test_report_in_browser import browse
from support.browser import CHROMIUM

from forty2.errors import RunError
from forty2.report.archive import Cell, Row, write_archive_page

ATTACK = "<script>document.title='hacked'</script><img src=x onerror=alert(1)>\" onclick=\"x"
ROWS = [
    Row("first", "runs/first/report.html", [Cell("MC1 0.5", 0.5), Cell(ATTACK)]),
    Row(ATTACK, None, [Cell("", ""), Cell("b")]),
    Row("tenth", None, [Cell("10", 10.0), Cell("a")]),
    Row("second", None, [Cell("2", 2.0), Cell("c")]),
]


@pytest.fixture
def page(tmp_path: Path) -> Path:
    return write_archive_page(tmp_path / "index.html", f"about {ATTACK}", ["mc1", ATTACK], ROWS)


def test_texts_of_runs_stay_text_and_the_only_script_is_the_one_that_sorts(page: Path) -> None:
    html = page.read_text("utf-8")
    assert html.count("<script>") == html.count("</script>") == 1 and "<img" not in html
    script = html.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', html)
    assert f"script-src 'sha256-{digest}';" in unescape(policy)
    assert 'href="runs/first/report.html"' in html and html.count("href=") == 1


def test_a_page_replaces_a_page_of_runs_and_nothing_else(page: Path) -> None:
    write_archive_page(page, "again", ["mc1"], [])
    assert "again" in page.read_text("utf-8")
    page.write_text("<html>my own page</html>")
    with pytest.raises(RunError, match="exists and is not a page of runs"):
        write_archive_page(page, "again", ["mc1"], [])
    assert "my own" in page.read_text("utf-8")
    with pytest.raises(RunError, match="is a folder"):
        write_archive_page(page.parent, "again", ["mc1"], [])


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize(("presses", "order"), [(1, "0.5 2.0 10.0 "), (2, "10.0 2.0 0.5 ")])
def test_a_browser_sorts_by_numbers_with_rows_without_a_value_last(
    presses: int, order: str, page: Path
) -> None:
    press = "document.querySelectorAll('th button')[1].click();" * presses
    html = page.read_text("utf-8")
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html)
    page.write_text(html.replace("</body>", f"<script>{press}</script></body>"), "utf-8")
    dom = browse(page)
    found = re.findall(r'<td data-sort="([^"]*)">', dom)
    assert " ".join(found) == order
    assert "hacked" not in dom.partition("</title>")[0]


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_script_runs_under_the_page_s_own_policy(page: Path) -> None:
    """It makes the headings buttons. Another script, even after an error of ours, does not run."""
    assert "<button>" not in page.read_text("utf-8").replace('createElement("button")', "")
    attacked = page.read_text("utf-8").replace("</body>", f"{ATTACK}</body>")
    page.write_text(attacked, "utf-8")
    dom = browse(page)
    assert dom.count("<button>") == 3 and "<title>Runs</title>" in dom
