"""Reports in a real browser: whatever a run's files say is shown as text, and nothing of it acts.

A small run is made for real; then every text in every file of it gets script-laden strings. What
must hold is held twice: the page without its policy shows that the escaping suffices, and a page
without escaping shows that the policy does.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from chaos import make_inputs
from markdown_it import MarkdownIt
from support.browser import CHROMIUM, HEADLESS
from support.runs import short_checks

import forty2
from forty2.files import read_json
from forty2.report.run import FILES, write_report

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium or Chrome here")

MARK = "pwned"
"""A script that runs puts it into the title; a payload's text has it in two halves."""
SCRIPT = "document.title='pw'+'ned'"
ATTACKS = [
    f"<script>{SCRIPT}</script>",
    f'"><img src=x onerror="{SCRIPT}">',
    f"'><svg onload={SCRIPT}>",
    f"</style></title></pre></textarea><script>{SCRIPT}</script>",
    f"</text></svg><script>{SCRIPT}</script>",
    f"<svg><script>{SCRIPT}</script></svg><svg><animate onbegin={SCRIPT} attributeName=x dur=1s>",
    f'<iframe srcdoc="<script>parent.{SCRIPT}</script>"></iframe>',
    f"<details open ontoggle={SCRIPT}>x</details><body onload={SCRIPT}>",
    f"&lt;script&gt;{SCRIPT}&lt;/script&gt; &#60;script>{SCRIPT}&#60;/script>",
    "{{7*7}} {% for x in [1] %}loop{% endfor %} ${7*7}",
    f'<a href="javascript:{SCRIPT}">a</a> [a](javascript:{SCRIPT}) ![a](HOST/image)',
    "<img src=HOST/img><link rel=stylesheet href=HOST/link><style>@import 'HOST/style';</style>",
    "<iframe src=HOST/frame></iframe><object data=HOST/object></object><base href=HOST/base/>",
    "<meta http-equiv=refresh content='0;url=HOST/refresh'><svg><image href=HOST/image /></svg>",
    "HOST/bare www.example.com <HOST/angled> [r]: HOST/ref me@example.com",
    f"```\n~~~\n\n# heading `` ` ```` <script>{SCRIPT}</script>\n\n    | a | b |\n|---|---|\n",
    "\u2028\u2029 \x00\x07\x1b[31m \u202egnp.exe\u202c \u2066x\u2069 \u200b\ufeff \ud800 \r\n",
    "<!doctype html><html><head><title>mine</title></head>",
    f"--><!--]]><![CDATA[<script>{SCRIPT}</script>]]>",  # the last: a browser would read no other
]
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f\u2028\u2029\u202a-\u202e\u2066-\u2069\u200b\ufeff]")


@pytest.fixture(scope="module")
def host() -> Iterator[tuple[str, list[str]]]:
    """A host that payloads call, and what they asked it for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run of a tiny model, measured after each phase and fused, that warned once."""
    place = tmp_path_factory.mktemp("browser")
    inputs = make_inputs(place / "inputs")
    questions = [
        {
            "question": f"Is it {n}?",
            "category": f"kind {n % 2}",
            "mc1_targets": {"Yes.": 1, "No.": 0},
            "mc2_targets": {"Yes.": 1, "So.": 1, "No.": 0},
        }
        for n in range(4)
    ]
    (inputs / "questions.json").write_text(json.dumps(questions))
    overrides = [
        f"benchmark={{n: 2, questions: {inputs / 'questions.json'}}}",
        f"fuse={{out: {place / 'fused'}, quantize: 8}}",
        *(f"phases.{name}.{key}=2" for name in ("sft", "dpo") for key in ("steps", "batch_size")),
    ]
    recipe = forty2.load_recipe(inputs / "recipe.yaml", overrides)
    with short_checks():
        run = forty2.run(recipe, run_dir=place / "run").path
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"phase": "sft", "step": 2, "red_line": "spike", "warning": "a spike"}\n')
    write_report(run)
    return run


@pytest.fixture(scope="module")
def laden(
    finished: Path, host: tuple[str, list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The run again, with every attack behind every text in its files, keys that vary included."""
    run = tmp_path_factory.mktemp("laden") / "run"
    shutil.copytree(finished, run)
    attack = " ".join(ATTACKS).replace("HOST", host[0])
    in_a_name = attack.replace("/", "\u2215").replace("\0", "").replace("\ud800", "")[:200]

    def lace(value: Any, key: str = "") -> Any:
        if key == "judged":  # names of metrics, whose keys stay as well
            return value
        if key == "costs":  # their names tell the metric
            return [{**cost, "answer": cost["answer"] + attack} for cost in value]
        if isinstance(value, str):
            return value + (in_a_name if key == "stage" else attack)
        if isinstance(value, dict):
            varying = key in ("versions", "categories", "tags")
            return {k + attack * varying: lace(v, k) for k, v in value.items()}
        return [lace(held, key) for held in value] if isinstance(value, list) else value

    for path in [*run.rglob("*.json")]:
        write_raw(path, lace(read_json(path)))
        if path.parent.name == "benchmarks":
            path.rename(path.with_name(f"{path.stem}{in_a_name.replace(' ', '-')}.json"))
    phase = read_json(run / "phase1_sft" / "phase.json")
    phase["dropped"], phase["shortened"] = [attack, attack], [attack]
    write_raw(run / "phase1_sft" / "phase.json", phase)
    fused = read_json(run / "fused.json")
    write_raw(run / "fused.json", {**fused, "warnings": [attack]})
    lines = (run / "metrics.jsonl").read_text().splitlines()
    metrics = "".join(json.dumps(lace(json.loads(line))) + "\n" for line in lines)
    (run / "metrics.jsonl").write_text(metrics)
    clean = attack.replace("\ud800", "")
    block = "".join(f"  {line}\n" for line in clean.split("\n"))
    recipe = (run / "recipe.yaml").read_text() + f"text: |2\n{block}escaped: {json.dumps(attack)}\n"
    (run / "recipe.yaml").write_text(recipe, "utf-8")
    write_report(run)
    return run


def write_raw(path: Path, value: Any) -> None:
    """JSON with lone surrogates, which the product's own writer would refuse."""
    path.write_text(json.dumps(value))


def browse(page: Path, *more: str) -> str:
    """The page's DOM once it has loaded and its timers ran."""
    assert CHROMIUM is not None
    command = [
        CHROMIUM,
        *HEADLESS,
        "--virtual-time-budget=2000",
        f"--user-data-dir={page.parent / 'profile'}",
        *(more or ["--dump-dom"]),
        page.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, timeout=30, check=True)
    return done.stdout.decode()


class Dom(HTMLParser):
    """What a dumped page consists of."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.title = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.attributes += [(name, value or "") for name, value in attributes]

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.elements[-1:] == ["title"] and "body" not in self.elements:
            self.title += data


ACTIVE = {
    "script",
    "img",
    "iframe",
    "object",
    "embed",
    "link",
    "base",
    "form",
    "input",
    "animate",
    "image",
    "foreignobject",
    "use",
    "textarea",
}


def assert_dead(dom: Dom) -> None:
    assert MARK not in dom.title
    assert not ACTIVE & set(dom.elements)
    assert not [name for name, _ in dom.attributes if name.startswith("on")]
    assert not [v for n, v in dom.attributes if n in ("src", "srcdoc", "xlink:href")]
    assert {v for n, v in dom.attributes if n == "href"} <= {*FILES, "#words"}
    assert "open" not in [n for n, _ in dom.attributes]  # the page's own details are closed


def assert_says(text: str, host: str) -> None:
    """Every attack can be read as it was written, and what cannot be seen is spelled out."""
    squeezed = " ".join(text.split())
    for attack in ATTACKS:
        wanted = UNSEEN.sub(lambda c: ascii(c[0])[1:-1], attack.replace("HOST", host))
        wanted = wanted.replace("\ud800", "\\ud800")
        assert " ".join(wanted.split()) in squeezed, attack
    assert not UNSEEN.search(text)


def without_policy(html: str) -> str:
    page, found = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html)
    assert found == 1
    return page


def test_the_escaping_alone_leaves_nothing_that_acts(
    laden: Path, host: tuple[str, list[str]], tmp_path: Path
) -> None:
    address, asked = host
    asked.clear()
    page = tmp_path / "bare.html"
    page.write_text(without_policy((laden / "report.html").read_text("utf-8")), "utf-8")
    dom = Dom(browse(page))
    assert_dead(dom)
    assert_says(dom.text, address)
    assert not asked


def test_the_page_still_draws_under_its_policy(
    laden: Path, finished: Path, host: tuple[str, list[str]], tmp_path: Path
) -> None:
    host[1].clear()
    dom, plain = (Dom(browse(run / "report.html")) for run in (laden, finished))
    assert_dead(dom)
    assert not host[1]
    for tag in ("svg", "path", "text", "figcaption", "table", "tr", "li"):
        assert dom.elements.count(tag) >= plain.elements.count(tag) > 0, tag
    html = (finished / "report.html").read_text("utf-8")
    pages = {"guarded": html, "bare": without_policy(html), "plain": html.replace("<style>", "<p>")}

    def drawn(name: str) -> bytes:
        file = tmp_path / f"{name}.html"
        file.write_text(pages[name], "utf-8")
        browse(file, f"--screenshot={file.with_suffix('.png')}", "--window-size=1000,2400")
        return file.with_suffix(".png").read_bytes()

    # On a busy machine one page is not always drawn alike to the last pixel.
    guarded, bare = ({drawn(name) for _ in range(3)} for name in ("guarded", "bare"))
    assert guarded & bare
    assert drawn("plain") not in guarded


def test_the_policy_alone_stops_what_would_act(
    laden: Path, host: tuple[str, list[str]], tmp_path: Path
) -> None:
    """And without either, the very same payloads do act: the tests above can fail."""
    address, asked = host
    page = (laden / "report.html").read_text("utf-8")
    raw = "\n".join(
        f"<div>{a}</div>"
        for a in (attack.replace("HOST", address) for attack in ATTACKS)
        if "refresh" not in a and "\ud800" not in a
    )
    seen: dict[str, tuple[bool, bool]] = {}
    for name, text in (("guarded", page), ("open", without_policy(page))):
        asked.clear()
        file = tmp_path / f"{name}.html"
        file.write_text(text.replace("<body>", f"<body>{raw}"), "utf-8")
        title = re.search("<title>(.*?)</title>", browse(file), re.DOTALL)
        assert title is not None
        seen[name] = MARK in title[1], bool(asked)
    assert seen == {"guarded": (False, False), "open": (True, True)}


def test_the_markdown_report_becomes_no_html_and_no_link(
    laden: Path, host: tuple[str, list[str]], tmp_path: Path
) -> None:
    address, asked = host
    asked.clear()
    render: Callable[[str], str] = MarkdownIt("js-default", {"html": True}).render
    attack = " ".join(ATTACKS).replace("HOST", address)
    assert "<script>" in render(attack)
    page = tmp_path / "markdown.html"
    source = (laden / "report.md").read_text("utf-8")
    page.write_text(f"<meta charset=utf-8><title>m</title><body>{render(source)}", "utf-8")
    dom = Dom(browse(page))
    assert_dead(dom)
    assert_says(dom.text, address)
    assert dom.elements.count("h1") == 1 and dom.elements.count("pre") == 1
    assert not asked
