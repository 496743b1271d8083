"""The report in a real browser: opens from a file, complains about nothing, overflows nowhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.core.results import read_study, to_json
from harness.core.spec import ArmSpec
from harness.report.write import write_report
from scripts.screenshots import browser as open_browser
from scripts.screenshots import look, printed
from tests.fakes.run_folders import write_fake_study

pytestmark = [pytest.mark.system("chromium", "chromedriver")]


ATTACK = "</pre><script>document.title = 'broken'</script>" + "unbrokenword" * 12
# Text that leaves the screen or its cell, or that two cells of a row write over each other; what scrolls may be wider.
CUT = """
    const bad = [];
    for (const e of document.querySelectorAll("h1, h2, h3, p, li, td, th, figcaption, label, dd, dt, summary")) {
      if (!e.offsetParent || !e.textContent.trim()) continue;
      const range = document.createRange();
      range.selectNodeContents(e);
      const text = range.getBoundingClientRect(), box = e.getBoundingClientRect();
      if (!e.closest(".scroll") && (text.left < -1 || text.right > innerWidth + 1)) bad.push("off: " + e.textContent);
      if (text.right > box.right + 1.5 || text.bottom > box.bottom + 1.5) bad.push("out: " + e.textContent);
    }
    for (const svg of document.querySelectorAll("figure svg[role=img]")) {
      const frame = svg.getBoundingClientRect();
      for (const t of svg.querySelectorAll("text")) {
        const r = t.getBoundingClientRect();
        if (r.width && (r.left < frame.left - 1 || r.right > frame.right + 1)) bad.push("figure: " + t.textContent);
      }
    }
    return bad.slice(0, 5);"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    driver = open_browser(tmp_path_factory.mktemp("profile"))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    study = tmp_path_factory.mktemp("results") / "study"
    arms = ["PPO", "GRPO", "DAPO", ArmSpec(name="A long name of an arm", algorithm="gspo")]
    write_fake_study(study, arms, [0, 1, 2], 12, collapsed=[("DAPO", 1)])
    for run in read_study(study).runs:
        changed = [s.model_copy(update={"response": ATTACK, "extracted": ATTACK}) for s in run.samples]
        (run.path / "samples.jsonl").write_text("".join(to_json(s) + "\n" for s in changed))
    return write_report(study, draw=False)["html"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_page_opens_without_complaint(browser: Any, page: Path, width: int, scheme: str) -> None:
    browser.get_log("browser")
    browser.get_log("performance")
    look(browser, page, scheme, width)
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    requests = [e["message"] for e in browser.get_log("performance") if '"Network.requestWillBeSent"' in e["message"]]
    assert all('"url":"http' not in r for r in requests)
    overflow = browser.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
    assert overflow <= 0
    browser.execute_script("for (const d of document.querySelectorAll('details')) d.open = true")
    assert browser.execute_script(CUT) == []
    assert "GRPO" in browser.find_element("css selector", "table").text
    empty = [s for s in browser.find_elements("css selector", "svg") if s.is_displayed() and s.size["width"] < 1]
    assert empty == []
    ink, paper = browser.execute_script(
        "const s = getComputedStyle(document.body); return [s.color, getComputedStyle(document.documentElement)"
        ".backgroundColor === 'rgba(0, 0, 0, 0)' ? s.backgroundColor : "
        "getComputedStyle(document.documentElement).backgroundColor]"
    )
    dark = [sum(int(x) for x in re.findall(r"\d+", c)[:3]) < 384 for c in (ink, paper)]
    assert dark == ([True, False] if scheme == "light" else [False, True])


def test_a_response_with_a_script_is_shown_as_text(browser: Any, page: Path) -> None:
    look(browser, page, "light", 1280)
    browser.execute_script("for (const d of document.querySelectorAll('details')) d.open = true")
    assert browser.title == "study: comparison report"
    shown = browser.find_elements("css selector", ".responses pre")
    assert any(ATTACK in pre.text.replace("\n", "") for pre in shown)
    assert len(browser.find_elements("css selector", "script")) == 1


WIDE = """
    return [...document.querySelectorAll("main, main *")].filter((e) => e.getBoundingClientRect().width
      && (e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflowX !== "visible"
          || e.getBoundingClientRect().right > innerWidth + 1.5)).slice(0, 5).map((e) => e.outerHTML.slice(0, 200));"""


def test_nothing_is_cut_or_scrolls_on_the_width_of_a4(browser: Any, page: Path) -> None:
    """Paper cannot scroll: at 186 mm (A4 less its margins) everything stands inside the page."""
    look(browser, page, "light", 703)
    media = {"media": "print", "features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.execute_script("for (const d of document.querySelectorAll('details')) d.open = true")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 703
    assert browser.execute_script(WIDE) == []
    assert browser.execute_script(CUT.replace('!e.closest(".scroll") && ', "")) == []
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert paper == "rgb(255, 255, 255)", "also where the reader's system is dark"
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_it_prints_on_a4(browser: Any, page: Path) -> None:
    look(browser, page, "light", 1280)
    pdf = printed(browser)
    assert pdf.startswith(b"%PDF")
    boxes = re.findall(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", pdf)
    assert {(round(float(w)), round(float(h))) for w, h in boxes} == {(595, 842)}
    assert 3 <= len(boxes) <= 30


def test_a_click_sorts_a_table_inside_its_groups(browser: Any, page: Path) -> None:
    browser.get(page.as_uri())
    read = """
        return [...document.querySelector("table").tBodies].map((b) =>
          [...b.rows].filter((r) => !r.classList.contains("group")).map((r) => r.cells[1].firstChild.data));"""
    head = browser.find_element("css selector", "table th:nth-child(2) button")
    head.click()
    down = [[float(x) for x in group] for group in browser.execute_script(read)]
    assert all(group == sorted(group, reverse=True) for group in down)
    head.click()
    up = [[float(x) for x in group] for group in browser.execute_script(read)]
    assert up == [group[::-1] for group in down]
    assert browser.execute_script("return document.querySelector('table th:nth-child(2)').ariaSort") == "ascending"


def test_the_axis_changes_curves_and_order(browser: Any, page: Path) -> None:
    browser.get(page.as_uri())
    shown = []
    for axis in ("sampled_tokens", "step", "trained_tokens", "wallclock_s"):
        browser.execute_script(f"document.getElementById('axis-{axis}').click()")
        visible = [s for s in browser.find_elements("css selector", "section.axis") if s.is_displayed()]
        assert [s.get_attribute("id") for s in visible] == [f"curves-{axis}"]
        shown.append(visible[0].text)
    assert len(set(shown)) == 4
    assert all("Order at" in text for text in shown)
