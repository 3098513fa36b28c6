"""Take the README's picture: ``python -m tests.dashboard.screenshot LOGDIR OUT.png``.

It shows the tab of all runs in LOGDIR. Needs Chromium, its driver and selenium.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from lightning_hessrank.dashboard import dashboard_url
from tests.dashboard import browser


def newest_run(logdir: Path) -> str:
    """Folder of the event file written last, relative to ``logdir``."""
    files = sorted(logdir.rglob("*.tfevents.*"), key=lambda path: path.stat().st_mtime)
    if not files:
        raise SystemExit(f"no event files in {logdir}")
    return str(files[-1].parent.relative_to(logdir))


def open_dashboard(driver: Any, address: str, run: str, name: str = "hessian") -> None:
    """Open the link to the stock cards, and wait for the pinned cards and their pictures."""
    driver.get(address + dashboard_url(name, run=run))
    pinned = "metrics-pinned-view card-view"
    browser.wait_for(lambda: browser.deep(driver, pinned, "found.length") >= 4)
    pictures = "metrics-pinned-view image-card img"
    loaded = "found.filter(image => image.complete && image.naturalWidth > 0).length"
    browser.wait_for(lambda: browser.deep(driver, pictures, loaded) >= 2)


def take(logdir: Path, target: Path) -> None:
    """Write the picture: the first three of the tab's questions, with their answers."""
    with browser.tensorboard(logdir) as address, browser.chromium(1400, 1330) as driver:
        browser.open_tab(driver, address)
        time.sleep(2)  # animations, and runs that TensorBoard is still reading
        driver.switch_to.default_content()
        driver.save_screenshot(str(target))


if __name__ == "__main__":
    take(Path(sys.argv[1]), Path(sys.argv[2]))
