"""The page in a real browser: replies side by side, as text, on a phone and in the dark."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.browser import CHROMIUM, Page, browser
from support.serve_client import reply
from support.served_run import SYSTEM, serving

from forty2.serve.http_server import ModelServer

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium or Chrome here")
IDS = ["base", "sft", "dpo"]
PROMPT = "Count to 3, please."
MARKUP = "<img src=x onerror=\"document.title='acted'\"><script>document.title='acted'</script>"

STOP_WHEN_WRITING = """new Promise((done) => {
  const watch = new MutationObserver(() => {
    const states = [...document.querySelectorAll(".state")].map((one) => one.textContent);
    if (!states.includes("writing")) return;
    watch.disconnect();
    find("stop").click();
    done();
  });
  watch.observe(find("replies"), { childList: true, subtree: true });
  find("prompt").value = "One";
  find("tokens").value = 400;
  find("ask").click();
})"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture(scope="module")
def server(shop: Path) -> Iterator[ModelServer]:
    """A server of the phases, without the fused model."""
    record = shop / "fused.json"
    kept = record.read_bytes()
    record.unlink()
    try:
        with serving(shop) as running:
            yield running
    finally:
        record.write_bytes(kept)


def visit(tab: Page, server: ModelServer) -> None:
    tab.send("Page.navigate", url=server.url)
    tab.wait_for("document.querySelectorAll('.reply').length > 0")


def ask(tab: Page, **fields: Any) -> None:
    """Fill the form in, press the button, and wait for all replies."""
    for name, value in fields.items():
        tab.run(f"find('{name}').value = {json.dumps(value)}")
    tab.run("find('ask').click()")
    tab.wait_for("asking === null")


def shown(tab: Page, part: str) -> list[str]:
    script = f"[...document.querySelectorAll('.reply {part}')].map((one) => one.textContent)"
    return list(tab.run(script))


def test_replies_stand_side_by_side_and_are_those_of_the_api(
    tab: Page, server: ModelServer
) -> None:
    visit(tab, server)
    assert shown(tab, "h2") == IDS
    assert tab.run("find('system').value") == SYSTEM
    tops = tab.run("[...document.querySelectorAll('.reply')].map((one) => one.offsetTop)")
    assert len(set(tops)) == 1
    ask(tab, prompt=PROMPT, system="", tokens="12", seed="3", temperature="0")
    wanted = [reply(server, name, PROMPT, max_tokens=12, seed=3) for name in IDS]
    assert shown(tab, ".text") == wanted and len(set(wanted)) == 3
    assert all("token" in state for state in shown(tab, ".state"))
    draw(tab, "wide")
    ask(tab, prompt=PROMPT, system=SYSTEM, tokens="12", seed="3", temperature="0")
    assert shown(tab, ".text") != wanted


def test_a_reply_can_be_stopped(tab: Page, server: ModelServer) -> None:
    visit(tab, server)
    tab.run(STOP_WHEN_WRITING)
    tab.wait_for("asking === null")
    assert set(shown(tab, ".state")) == {"stopped"}


def test_what_a_model_writes_is_text(tab: Page, server: ModelServer) -> None:
    """The models here write no markup, so the page's own fetch is given some."""
    visit(tab, server)
    event = {"choices": [{"delta": {"content": MARKUP, "reasoning": MARKUP}}]}
    stream = json.dumps(f"data: {json.dumps(event)}\n\ndata: [DONE]\n\n")
    tab.run(f"window.fetch = async () => new Response({stream}), 0")
    ask(tab, prompt="Hi.")
    assert shown(tab, ".text") == shown(tab, ".thought") == [MARKUP] * 3
    assert tab.run("document.querySelectorAll('.reply img, .reply script').length") == 0
    assert "acted" not in tab.run("document.title")


def test_an_error_is_shown_in_its_column(tab: Page, server: ModelServer) -> None:
    visit(tab, server)
    ask(tab, prompt="x" * 700, system="")
    assert all(state.startswith("failed: the prompt and a reply") for state in shown(tab, ".state"))


def test_the_policy_stops_scripts_and_other_hosts(tab: Page, server: ModelServer) -> None:
    visit(tab, server)
    tab.run(f"document.body.insertAdjacentHTML('beforeend', {json.dumps(MARKUP)}), 0")
    blocked = "fetch('http://127.0.0.1:9/').then(() => 'let through', (error) => 'stopped')"
    assert tab.run(blocked) == "stopped"
    assert "acted" not in tab.run("document.title")


def test_it_fits_a_phone_and_follows_the_dark(tab: Page, server: ModelServer) -> None:
    phone = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    tab.send("Emulation.setDeviceMetricsOverride", **phone)
    colors = {}
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        tab.send("Emulation.setEmulatedMedia", features=[feature])
        visit(tab, server)
        ask(tab, prompt=PROMPT + "x" * 80, tokens="40")
        assert tab.run("document.documentElement.scrollWidth") <= 360
        colors[scheme] = tab.run("getComputedStyle(document.body).backgroundColor")
        draw(tab, scheme)
    assert colors == {"light": "rgb(255, 255, 255)", "dark": "rgb(24, 25, 27)"}
    tab.send("Emulation.clearDeviceMetricsOverride")


def draw(tab: Page, name: str) -> None:
    """Write a picture of the page, where one wants to look at it."""
    folder = os.environ.get("FORTY2_PICTURES")
    if folder:
        data = tab.send("Page.captureScreenshot")["data"]
        (Path(folder) / f"serve-{name}.png").write_bytes(base64.b64decode(data))
