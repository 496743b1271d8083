"""Pictures of a report in a real browser: wide and narrow, light and dark, and as printed.

    python scripts/screenshots.py results/reference/quick/report.html --out /some/where

Writes light-1280.png, dark-1280.png, light-390.png, dark-390.png (the whole page each) and print.pdf. The pictures of
the README are made with `--top 1500 --only light-1280 --out results/reference/quick`.
"""

from __future__ import annotations

import argparse
import base64
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

VIEWS = {f"{scheme}-{width}": (scheme, width) for scheme in ("light", "dark") for width in (1280, 390)}


def browser(profile: Path) -> Any:
    """Chromium without a window and without background traffic."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    for flag in (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", f"--user-data-dir={profile}",
    ):  # fmt: skip
        options.add_argument(flag)
    options.binary_location = "/usr/bin/chromium"
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))


def look(driver: Any, page: Path, scheme: str, width: int) -> None:
    """Opens the page as someone with this screen and this preference sees it."""
    device = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", device)
    preference = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", preference)
    driver.get(page.resolve().as_uri())


def picture(driver: Any, width: int, top: int | None) -> bytes:
    """The page as PNG, or its first `top` pixels."""
    height = driver.execute_script("return document.documentElement.scrollHeight")
    clip = {"x": 0, "y": 0, "width": width, "height": min(height, top or height), "scale": 1}
    shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True})
    return base64.b64decode(shot["data"])


def printed(driver: Any) -> bytes:
    """The page as PDF on A4."""
    paper = {"paperWidth": 8.27, "paperHeight": 11.69, "preferCSSPageSize": True, "printBackground": True}
    return base64.b64decode(driver.execute_cdp_cmd("Page.printToPDF", paper)["data"])


def run(arguments: Sequence[str] | None = None) -> int:
    """Writes the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path, help="a report.html")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--top", type=int, help="only so many pixels from the top")
    parser.add_argument("--only", help="comma-separated: " + ", ".join([*VIEWS, "print"]))
    options = parser.parse_args(arguments)
    wanted = options.only.split(",") if options.only else [*VIEWS, "print"]
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as profile:
        driver = browser(Path(profile))
        try:
            for name in (n for n in wanted if n in VIEWS):
                look(driver, options.page, *VIEWS[name])
                (options.out / f"{name}.png").write_bytes(picture(driver, VIEWS[name][1], options.top))
            if "print" in wanted:
                look(driver, options.page, "light", 1280)
                (options.out / "print.pdf").write_bytes(printed(driver))
        finally:
            driver.quit()
    return 0


if __name__ == "__main__":
    sys.exit(run())
