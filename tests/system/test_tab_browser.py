"""The tab and the report in a real browser: what is drawn is what the event files say."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from lightning_hessrank.dashboard.tab import page
from lightning_hessrank.dashboard.tab.provider import reader_of_folder
from lightning_hessrank.results import Measurement
from tests.dashboard import browser, folders
from tests.dashboard.browser import open_tab, settled


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    lacking = browser.missing()
    if lacking:
        pytest.skip(lacking)
    from selenium.common.exceptions import WebDriverException

    with ExitStack() as stack:
        try:
            found = stack.enter_context(browser.chromium())
        except WebDriverException as error:
            pytest.skip(f"Chromium does not start: {error.msg}")
        yield found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("mixed")
    folders.mixed(found)
    return found


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with browser.tensorboard(folder) as found:
        browser.wait_until_read(found, 3 * 12 + 6 + 3)
        yield found


def run(driver: Any, script: str, *arguments: Any) -> Any:
    return driver.execute_script(script, *arguments)


def set_state(driver: Any, **changes: Any) -> None:
    run(driver, "hessrank.view.set(arguments[0])", changes)
    settled(driver)


def drawn(driver: Any, chart: str, meta: str) -> list[dict[str, Any]]:
    """Traces of a chart, as the drawing library has them."""
    script = (
        "return (document.querySelector('#plot-' + arguments[0]).data || [])"
        ".filter(t => t.meta === arguments[1])"
        ".map(t => ({name: t.name, x: [...t.x], y: [...t.y], z: t.customdata}))"
    )
    return list(run(driver, script, chart, meta))


def table(driver: Any, chart: str) -> list[dict[str, Any]]:
    """The numbers that a chart gives away as CSV."""
    found = run(driver, "return document.querySelector('#plot-' + arguments[0]).hrTable", chart)
    return [dict(zip(found["columns"], row, strict=True)) for row in found["rows"]]


def complaints(driver: Any) -> list[str]:
    """What the console says, but for what TensorBoard's own pages say of themselves."""
    own = ("Three.js", "WebGL", "favicon")
    return [
        e["message"] for e in driver.get_log("browser") if not any(x in e["message"] for x in own)
    ]


def measured() -> dict[str, list[Measurement]]:
    return {
        "relu": list(folders.rising()),
        "linear": list(folders.falling()),
        "large": list(folders.estimated()),
        "old": list(folders.rising(6)),
    }


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_ranks_and_bounds_are_those_of_the_event_files(
    driver: Any, address: str, dark: bool
) -> None:
    open_tab(driver, address, dark=dark)
    curves = {t["name"]: t for t in drawn(driver, "rank", "rank")}
    for name, expected in measured().items():
        assert curves[name]["x"] == [m.step for m in expected]
        assert curves[name]["y"] == pytest.approx([m.total.rank for m in expected], rel=1e-6)
    assert folders.HOSTILE.replace("/", "") in curves  # as a name
    assert run(driver, "return document.querySelectorAll('main img').length") == 0
    bounds = {t["name"]: t["y"][0] for t in drawn(driver, "rank", "bound")}
    assert bounds == {
        "bound 765 (theorem or reference line)": 765,
        "bound 1,450 (reference line)": 1450,
    }
    (band,) = drawn(driver, "rank", "band")
    assert max(band["y"]) == pytest.approx(measured()["large"][0].total.interval[1], rel=1e-6)
    theme = run(driver, "return document.documentElement.dataset.theme")
    assert theme == ("dark" if dark else "light")
    assert complaints(driver) == []


def test_ten_seconds(driver: Any, address: str) -> None:
    """Up or down, against the bound, exact or not: in words, beside the chart."""
    open_tab(driver, address)
    said = run(driver, "return [...document.querySelectorAll('.verdict')].map(x => x.innerText)")
    said = [text.replace("\u00a0", " ") for text in said]
    by_name = {text.split("\n")[0].strip(): text for text in said}
    assert "599 → 954 ▲ rose" in by_name["relu"]
    assert "above the bound 765 (reference line), at 125 %" in by_name["relu"]
    assert "exact count, dense" in by_name["relu"]
    assert "765 → 633 ▼ fell" in by_name["linear"]
    assert "83 % of the bound 765 (theorem)" in by_name["linear"]
    assert "estimate, between 415 and 481 (95 %)" in by_name["large"]
    trust = run(driver, "return document.querySelector('.trust table').hrTable")
    assert trust["columns"][:4] == ["run", "how", "gap at the cut", "tolerance"]
    assert "a weight penalty was found in the loss" in run(
        driver, "return document.querySelector('.warnings').innerText"
    )


def test_the_tolerance_moves_all_curves_and_ratios_are_ratios(driver: Any, address: str) -> None:
    open_tab(driver, address)
    set_state(driver, tolerance="1e-3", unit="bound")
    curves = {t["name"]: t["y"] for t in drawn(driver, "rank", "rank")}
    for name in ("relu", "linear", "large"):
        expected = [
            m.total.rank_at(1e-3) / m.bound.total for m in measured()[name] if m.bound is not None
        ]
        assert curves[name] == pytest.approx(expected, rel=1e-6)
    set_state(driver, tolerance="1e-5", unit="count")
    assert drawn(driver, "rank", "rank")[1]["y"] == [None] * 12  # an estimate does not know it
    assert "Not known at this tolerance: large." in run(
        driver, "return document.querySelector('.note').innerText"
    )
    rows = [row for row in table(driver, "rank") if row["run"] == "relu"]
    assert [row["rank"] for row in rows] == [m.total.rank_at(1e-5) for m in measured()["relu"]]


def test_spectrum_layers_and_parts_are_those_of_the_run(driver: Any, address: str) -> None:
    open_tab(driver, address)
    expected = measured()["relu"]
    assert run(driver, "return hessrank.view.chosen().label") == "relu"
    for sign, chosen in (("positive", 1), ("negative", -1)):
        (heat,) = drawn(driver, "density", sign)
        counted = [sum(row[j] or 0 for row in heat["z"]) for j in range(len(expected))]
        beyond = [
            int((m.total.eigenvalues * chosen > m.total.tolerance).sum())
            for m in expected
            if m.total.eigenvalues is not None
        ]
        assert counted == beyond
    first, *_ = table(driver, "sorted")
    largest = expected[-1].total.eigenvalues
    assert largest is not None
    assert first["eigenvalue"] == pytest.approx(float(max(largest, key=abs)), rel=1e-3)
    layers = {(r["step"], r["layer"]): r["rank"] for r in table(driver, "layers")}
    assert layers == {(m.step, k): x.rank for m in expected for k, x in m.layers.items()}
    assert len(drawn(driver, "panels", "rank")) == 4
    (outer,) = drawn(driver, "parts", "rank_outer")
    assert outer["y"] == [m.outer.rank for m in expected if m.outer is not None]


def test_an_estimate_and_an_old_run_say_what_they_lack(driver: Any, address: str) -> None:
    open_tab(driver, address)
    for name, said in (
        ("large", "lanczos has no eigenvalues: its counts"),
        ("old", "version 0.1.0 wrote no spectra: its counts"),
    ):
        run_id = run(
            driver, "return hessrank.view.runs.find(r => r.label === arguments[0]).id", name
        )
        set_state(driver, run=run_id)
        browser.wait_for(lambda said=said: said in run(driver, "return document.body.innerText"))
    (counts,) = drawn(driver, "sorted", "counts")
    assert len(counts["x"]) == 6
    ranks = [r["rank"] for r in table(driver, "layers") if r["layer"] == "net.0"]
    assert ranks == [m.layers["net.0"].rank for m in measured()["old"]]


def test_seeds_as_a_band(driver: Any, tmp_path: Path) -> None:
    folders.many(tmp_path, runs=8, steps=5)
    with browser.tensorboard(tmp_path) as address:
        browser.wait_until_read(address, 8 * 5)
        open_tab(driver, address)
        set_state(driver, groups=True)
        browser.wait_for(lambda: len(drawn(driver, "rank", "rank")) == 4)
        curves = {t["name"]: t["y"] for t in drawn(driver, "rank", "rank")}
        read = reader_of_folder(tmp_path).overview()["runs"]
        for width in range(1, 5):
            seeds = [r["records"] for r in read if r["run"].startswith(f"width{width}/")]
            mean = [(a["rank"] + b["rank"]) / 2 for a, b in zip(*seeds, strict=True)]
            assert curves[f"width{width}"] == mean


def test_across_runs_and_a_table_that_sorts(driver: Any, address: str) -> None:
    open_tab(driver, address)
    set_state(driver, against="val_acc")
    found = {row["run"]: row["val_acc"] for row in table(driver, "across")}
    assert found["relu"] == pytest.approx(1 - measured()["relu"][-1].loss / 3, rel=1e-6)
    run(driver, "[...document.querySelectorAll('.summary th button')][3].click()")
    ranks = [
        row[3]
        for row in run(driver, "return document.querySelector('.summary table').hrTable.rows")
    ]
    assert ranks == sorted(ranks, reverse=True)


def test_a_run_that_is_still_going(driver: Any, tmp_path: Path) -> None:
    """New measurements come with TensorBoard's own button, and what was chosen stays."""
    found = list(folders.rising(6))
    logger = folders.write(tmp_path, "going", iter(found[:3]))
    with browser.tensorboard(tmp_path, "--reload_interval", "1") as address:
        open_tab(driver, address)
        set_state(driver, unit="bound", step=found[1].step)
        for one in found[3:]:
            folders.TAB.write([logger], one, [one.record()], one.step)
        logger.experiment.flush()

        def reloaded() -> bool:
            driver.switch_to.default_content()
            browser.deep(driver, "app-header-reload button", "found.forEach(b => b.click())")
            driver.switch_to.frame(browser.deep(driver, "iframe")[0])
            return len(drawn(driver, "rank", "rank")[0]["x"]) == len(found)

        browser.wait_for(reloaded)
        assert run(driver, "return [hessrank.view.state.unit, hessrank.view.state.step]") == [
            "bound",
            found[1].step,
        ]
        settled(driver)
        browser.wait_for(lambda: len(drawn(driver, "density", "positive")[0]["z"][0]) == len(found))
    logger.finalize("success")


def test_runs_without_the_callback(driver: Any, tmp_path: Path) -> None:
    folders.without_callback(tmp_path)
    with browser.tensorboard(tmp_path) as address:
        driver.get(f"{address}/#hessian")
        driver.switch_to.frame(browser.wait_for(lambda: browser.deep(driver, "iframe"))[0])
        browser.wait_for(
            lambda: (
                "1 run is here, but none with the callback"
                in run(driver, "return document.body.innerText")
            )
        )
        assert "HessianRankMonitor()" in run(driver, "return document.body.innerText")
        assert complaints(driver) == []


def test_the_report_draws_the_same(driver: Any, folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    target.write_text(page.report_of(reader_of_folder(folder)), encoding="utf-8")
    shutil.copy(target, tmp_path / "copy.html")
    driver.get(f"file://{tmp_path / 'copy.html'}")
    browser.wait_for(lambda: run(driver, "return window.hessrank && hessrank.painted"))
    settled(driver)
    curves = {t["name"]: t for t in drawn(driver, "rank", "rank")}
    for name, expected in measured().items():
        assert curves[name]["y"] == pytest.approx([m.total.rank for m in expected], rel=1e-6)
    text = run(driver, "return document.body.innerText")
    assert "Measured with lightning-hessrank" in text
    assert "arXiv:2305.09088" in text
    assert "Bound of the linear surrogate, layer by layer" in text
    assert complaints(driver) == []
