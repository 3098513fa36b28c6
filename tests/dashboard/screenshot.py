"""Take the README's picture: ``python -m tests.dashboard.screenshot LOGDIR OUT.png``.

Opens the newest run in LOGDIR by the link that the monitor prints. Needs Chromium, its driver and
selenium.
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
    """Open the printed link, and wait for the pinned cards and their pictures."""
    driver.get(address + dashboard_url(name, run=run))
    pinned = "metrics-pinned-view card-view"
    browser.wait_for(lambda: browser.deep(driver, pinned, "found.length") >= 4)
    pictures = "metrics-pinned-view image-card img"
    loaded = "found.filter(image => image.complete && image.naturalWidth > 0).length"
    browser.wait_for(lambda: browser.deep(driver, pictures, loaded) >= 2)


def take(logdir: Path, target: Path) -> None:
    """Write the picture."""
    with browser.tensorboard(logdir) as address, browser.chromium(1340, 1170) as driver:
        open_dashboard(driver, address, newest_run(logdir))
        # The pane of settings takes room from the cards.
        browser.deep(driver, "button.settings-button", "found.forEach(button => button.click())")
        time.sleep(3)  # animations
        driver.save_screenshot(str(target))


if __name__ == "__main__":
    take(Path(sys.argv[1]), Path(sys.argv[2]))
