"""What TensorBoard makes of it: its own HTTP endpoints, and its pages in a real browser."""

from __future__ import annotations

import importlib.util
import io
import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger

from lightning_hessrank.dashboard import Dashboard
from tests.dashboard import browser, synthetic
from tests.dashboard.screenshot import newest_run, open_dashboard

pytestmark = pytest.mark.slow

#: Runs that share a folder: what their charts have in common must not break.
RUNS: dict[str, Any] = {
    "relu": {},
    "wider": {"layers": 9},
    "linear": {"bound": synthetic.bound(is_theorem=True)},
    "large": {"stochastic": True, "layers": 0},
}
HEADING = "hessian: rank of the loss Hessian"


class Server:
    """TensorBoard's endpoints."""

    def __init__(self, address: str) -> None:
        self.address = address

    def raw(self, route: str, **query: Any) -> bytes:
        return browser.fetch(f"{self.address}/data/{route}?{urlencode(query)}")

    def get(self, route: str, **query: Any) -> Any:
        return json.loads(self.raw(route, **query))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("runs")
    for name, changes in RUNS.items():
        logger = TensorBoardLogger(folder, name=name, version="")
        dashboard = Dashboard(figures=name == "relu")
        dashboard.start([logger])
        for measurement, history in synthetic.run(2, **changes):
            dashboard.write([logger], measurement, history, measurement.step)
        logger.finalize("success")
    without = TensorBoardLogger(folder, name="without the callback", version="")
    without.log_metrics({"train_loss": 1.0}, step=0)
    without.finalize("success")
    with browser.tensorboard(folder) as address:
        server = Server(address)
        browser.wait_for(lambda: len(server.get("runs")) == len(RUNS) + 1)
        browser.wait_for(lambda: server.get("plugin/custom_scalars/layout"))
        yield server


def test_merged_page_of_several_runs(server: Server) -> None:
    (category,) = server.get("plugin/custom_scalars/layout")["category"]
    assert category["title"] == HEADING
    titles = [chart["title"] for chart in category["chart"]]
    assert len(titles) == len(set(titles))
    assert set(titles) == {
        "What is happening: rank at 1e-1, 1e-3 and machine precision, and bound",
        "Rank, bound, parameters",
        "Rank and its outer-product and functional parts",
        "Estimated rank, 95 % interval",
    }


def test_every_chart_has_the_data_that_it_names(server: Server) -> None:
    (category,) = server.get("plugin/custom_scalars/layout")["category"]
    for chart in category["chart"]:
        margins = chart.get("margin", {}).get("series", [])
        patterns = chart.get("multiline", {}).get("tag", [])
        exact = [tag for s in margins for tag in (s["value"], s["lower"], s["upper"])]
        patterns += [f"{re.escape(tag)}$" for tag in exact]
        assert patterns
        for pattern in patterns:
            answers = {
                run: server.get("plugin/custom_scalars/scalars", run=run, tag=pattern)
                for run in server.get("runs")
            }
            assert all(answer["regex_valid"] for answer in answers.values())
            matched = {run: answer["tag_to_events"] for run, answer in answers.items()}
            assert matched["without the callback"] == {}
            assert any(matched.values()), pattern
            for tags in matched.values():
                assert len(tags) <= 1  # not `rank_over_bound` besides `rank`
                assert all(len(points) == 2 for points in tags.values())


def test_images_are_served_and_decode(server: Server) -> None:
    images = server.get("plugin/images/tags")["relu"]
    assert len(images) == 5
    for tag in images:
        served = server.get("plugin/images/images", run="relu", tag=tag, sample=0)
        assert [image["step"] for image in served] == [0, 15]
        for image in served:
            query = image["query"]
            data = browser.fetch(f"{server.address}/data/plugin/images/individualImage?{query}")
            decoded = Image.open(io.BytesIO(data))
            decoded.load()
            assert decoded.size == (672, 320)


def test_texts_render_as_tables(server: Server) -> None:
    for leaf, cell in (("about", "<td>the exact count"), ("bound", "<td>510</td>")):
        (entry,) = server.get(
            "plugin/text/text", run="relu", tag=f"hessian-text/{leaf}/text_summary"
        )
        assert "<table>" in entry["text"]
        assert cell in entry["text"].replace(' align="right"', "").replace(
            ' style="text-align: right;"', ""
        )
        assert "<h3>" in entry["text"]


def test_histogram_is_served(server: Server) -> None:
    tag = "hessian-spectrum/decades_above_tolerance"
    served = server.get("plugin/histograms/histograms", run="relu", tag=tag)
    assert [step for _, step, _ in served] == [0, 15]


@pytest.fixture
def driver() -> Iterator[Any]:
    """A browser; where there is none that works, the test is skipped and says why."""
    lacking = browser.missing()
    if lacking:
        pytest.skip(lacking)
    from selenium.common.exceptions import WebDriverException

    with ExitStack() as stack:
        try:
            driver = stack.enter_context(browser.chromium())
        except WebDriverException as error:
            pytest.skip(f"Chromium does not start: {error.msg}")
        yield driver


def test_the_example_in_a_browser(
    driver: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run of `examples/digits.py`: every chart has data, images decode, no errors."""
    path = Path(__file__).parents[2] / "examples" / "digits.py"
    spec = importlib.util.spec_from_file_location("digits_in_browser", path)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    example.main(["--epochs", "1", "--logdir", str(tmp_path)])
    capsys.readouterr()
    with browser.tensorboard(tmp_path) as address:
        open_dashboard(driver, address, newest_run(tmp_path))
        smoothing = "input[aria-labelledby=scalars-smoothing-label]"
        assert browser.deep(driver, smoothing, "found.map(x => x.value)") == ["0"]

        driver.get(f"{address}/#custom_scalars")
        charts = "tf-custom-scalar-multi-line-chart-card"
        matches = (
            "found.map(c => [...c.shadowRoot.querySelectorAll('.match-list-entry')]"
            ".map(x => x.textContent.trim().split(/\\s+/)[1]))"
        )
        browser.wait_for(
            lambda: all(found := browser.deep(driver, charts, matches)) and len(found) == 3
        )
        assert sorted(browser.deep(driver, charts, matches)[0]) == [
            "hessian-bound/rank",
            *(f"hessian-tolerance/rank_{t}" for t in ("1e-1", "1e-3", "machine")),
        ]

        driver.get(f"{address}/#images")
        loaded = "found.filter(x => x.complete && x.naturalWidth === 672).length"
        browser.wait_for(lambda: browser.deep(driver, "img", loaded) == 4)
        severe = [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
        assert not severe
