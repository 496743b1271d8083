"""The report in a real browser: opens from a file, complains about nothing, overflows nowhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.report.write import write_report
from tests.fakes.run_folders import write_fake_study

pytestmark = [pytest.mark.system("chromium", "chromedriver")]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    profile = tmp_path_factory.mktemp("profile")
    for flag in (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", f"--user-data-dir={profile}",
    ):  # fmt: skip
        options.add_argument(flag)
    options.binary_location = "/usr/bin/chromium"
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    study = tmp_path_factory.mktemp("results") / "study"
    write_fake_study(study, ["PPO", "GRPO", "DAPO"], [0, 1, 2], 12)
    return write_report(study, draw=False)["html"]


@pytest.mark.parametrize("width", [1280, 390])
def test_page_opens_without_complaint(browser: Any, page: Path, width: int) -> None:
    browser.get_log("browser")
    browser.get_log("performance")
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    browser.get(page.as_uri())
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    requests = [e["message"] for e in browser.get_log("performance") if '"Network.requestWillBeSent"' in e["message"]]
    assert all('"url":"http' not in r for r in requests)
    overflow = browser.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
    assert overflow <= 0
    assert "GRPO" in browser.find_element("css selector", "table").text
    empty = [s for s in browser.find_elements("css selector", "svg") if s.is_displayed() and s.size["width"] < 1]
    assert empty == []


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
