"""TensorBoard as a process and Chromium without a window, for the smoke test and the screenshot."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

#: TensorBoards by their ports.
_PROCESSES: dict[int, subprocess.Popen[bytes]] = {}


def missing() -> str:
    """Say what a browser test lacks here, or nothing."""
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "selenium is not installed"
    for program in ("chromium", "chromedriver"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    return ""


@contextmanager
def tensorboard(logdir: Path, *options: str) -> Iterator[str]:
    """Serve a folder; yield the address once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--port"]
    command += [str(port), "--samples_per_plugin", "images=100", "--load_fast", "false", *options]
    process = _PROCESSES[port] = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: fetch(f"{address}/data/runs") not in (b"", b"[]\n", b"[]"), 60)
        yield address
    finally:
        process.terminate()
        process.wait(10)


def process_of(address: str) -> int:
    """Number of the process that serves there."""
    return _PROCESSES[int(address.rpartition(":")[2])].pid


def fetch(url: str) -> bytes:
    """Body of a page, empty while the server does not answer."""
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return bytes(response.read())
    except OSError:
        return b""


@contextmanager
def chromium(width: int = 1500, height: int = 1150) -> Iterator[Any]:
    """A browser with an empty profile that talks to nobody."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    with tempfile.TemporaryDirectory() as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium") or ""
        for argument in (
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
            f"--window-size={width},{height}",
            f"--user-data-dir={profile}",
        ):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
        try:
            yield driver
        finally:
            driver.quit()


def open_tab(driver: Any, address: str, *, dark: bool = False) -> None:
    """Open the tab by the link that the monitor prints, and wait until all of it is drawn."""
    driver.get("about:blank")
    driver.get(f"{address}/?darkMode={'true' if dark else 'false'}#hessian")
    driver.switch_to.frame(wait_for(lambda: deep(driver, "iframe"))[0])
    wait_for(lambda: driver.execute_script("return window.hessrank && hessrank.painted"))
    settled(driver)


def wait_until_read(address: str, measurements: int) -> None:
    """Wait until TensorBoard has read so many measurements, of all runs together."""

    def read() -> bool:
        found = json.loads(fetch(f"{address}/data/plugin/hessian/runs") or b"{}")
        return sum(len(run["records"]) for run in found.get("runs", [])) == measurements

    wait_for(read, 120)


def settled(driver: Any) -> None:
    """Wait for spectra and layers of the chosen run."""
    ready = (
        "return !!document.querySelector('#plot-across').data && !!hessrank.view.chosen().details"
    )
    wait_for(lambda: driver.execute_script(ready))


def deep(driver: Any, selector: str, result: str = "found") -> Any:
    """Run ``result``, a JavaScript expression of the list ``found`` of matching elements."""
    walk = (
        "const found = []; const walk = (root) => { for (const n of root.querySelectorAll('*')) {"
        " if (n.matches(arguments[0])) found.push(n); if (n.shadowRoot) walk(n.shadowRoot); } };"
        " walk(document);"
    )
    return driver.execute_script(f"{walk} return {result};", selector)


def wait_for(condition: Callable[[], T], seconds: float = 30) -> T:
    """Return the first true result, or fail."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        result = condition()
        if result:
            return result
        time.sleep(0.2)
    raise TimeoutError(f"nothing happened within {seconds} s")
