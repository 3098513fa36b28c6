"""First paint of the tab and memory of TensorBoard's process, with 20 runs of 200 measurements.

``pytest -m benchmark tests/benchmarks/test_tab.py -s`` prints what was measured.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.dashboard import browser, folders

pytestmark = pytest.mark.benchmark

RUNS, STEPS = 20, 200
FIRST_PAINT = 3.0
MEMORY = 200.0


def resident(pid: int) -> float:
    """MiB of a process and of those that it has started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    status = Path(f"/proc/{pid}/status").read_text()
    own = next(int(x.split()[1]) for x in status.splitlines() if x.startswith("VmRSS"))
    return own / 1024 + sum(resident(int(child)) for child in children)


def loaded(address: str) -> bool:
    """Whether TensorBoard has read all runs to their ends, without asking the tab."""
    query = f"run=width4/seed{RUNS // 4 - 1}&tag=hessian/rank"
    points = browser.fetch(f"{address}/data/plugin/scalars/scalars?{query}")
    return points.startswith(b"[") and len(json.loads(points)) == STEPS


def test_first_paint_and_memory(tmp_path: Path) -> None:
    lacking = browser.missing()
    if lacking:
        pytest.skip(lacking)
    folders.many(tmp_path / "new", RUNS, STEPS)
    folders.many(tmp_path / "old", RUNS, STEPS, replace(folders.TAB, tab=False))
    with browser.tensorboard(tmp_path / "old") as address:
        browser.wait_for(lambda: loaded(address), 120)
        before = resident(browser.process_of(address))
    with browser.chromium() as driver, browser.tensorboard(tmp_path / "new") as address:
        browser.wait_until_read(address, RUNS * STEPS)
        paints = []
        for _ in range(3):
            browser.open_tab(driver, address)
            paints.append(driver.execute_script("return hessrank.painted") / 1000)
            verdicts = "return document.querySelectorAll('.verdict').length"
            assert driver.execute_script(verdicts) == RUNS
            driver.switch_to.default_content()
        more = resident(browser.process_of(address)) - before
    print(f"first paint after {', '.join(f'{x:.2f}' for x in paints)} s; {more:.0f} MiB more")
    assert min(paints) < FIRST_PAINT
    assert more < MEMORY
