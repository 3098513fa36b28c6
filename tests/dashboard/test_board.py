"""Everything that is written, read back: event files, other loggers, runs that share a folder."""

from __future__ import annotations

import gc
import io
import time
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

from lightning_hessrank.dashboard import Dashboard, scalars
from lightning_hessrank.dashboard.tensorboard import LAYOUT_TAG, TensorBoardPage
from lightning_hessrank.dashboard.text import bound_table, guide
from lightning_hessrank.results import Measurement
from tests.dashboard import synthetic
from tests.dashboard.reading import FIGURES, PLAIN, layout, read, text, write


def test_everything_is_read_back(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    runs = synthetic.run(2)
    write(Dashboard(), [logger], runs)
    events = read(logger.log_dir)
    written: dict[str, list[tuple[int, float]]] = {}
    for measurement, _ in runs:
        for tag, value in scalars(measurement).items():
            written.setdefault(tag, []).append((measurement.step, value))
    assert set(events.Tags()["scalars"]) == set(written)
    for tag, points in written.items():
        found = [(e.step, e.value) for e in events.Scalars(tag)]
        assert [step for step, _ in found] == [step for step, _ in points]
        np.testing.assert_allclose([v for _, v in found], [v for _, v in points], rtol=1e-6)

    assert set(events.Tags()["images"]) == {f"hessian-figures/{x}" for x in FIGURES}
    for tag in events.Tags()["images"]:
        assert [e.step for e in events.Images(tag)] == [m.step for m, _ in runs]
        for image in events.Images(tag):
            decoded = Image.open(io.BytesIO(image.encoded_image_string))
            decoded.load()
            assert decoded.size == (image.width, image.height) == (672, 320)
            assert len(decoded.getcolors() or []) > 10  # something is drawn

    assert text(events, "hessian-text/about") == [guide("hessian")]
    assert text(events, "hessian-text/bound") == [bound_table(synthetic.bound())]  # once
    assert len(text(events, "hessian-text/batch_bound")) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("element", "gone"),
    [
        ("figures", lambda e: e.Tags()["images"]),
        ("histogram", lambda e: e.Tags()["histograms"]),
        ("layout", lambda e: [t for t in e.Tags()["tensors"] if t == LAYOUT_TAG]),
        ("tab", lambda e: [t for t in e.Tags()["tensors"] if "-tab/" in t]),
        ("text", lambda e: [t for t in e.Tags()["tensors"] if "-text/" in t]),
    ],
)
def test_each_element_can_be_switched_off_alone(tmp_path: Path, element: str, gone: Any) -> None:
    runs = synthetic.run(1, layers=0)
    logger, reference = (TensorBoardLogger(tmp_path, name=n) for n in ("off", "on"))
    write(Dashboard(**{element: False}), [logger], runs)
    write(Dashboard(), [reference], runs)
    off, on = read(logger.log_dir).Tags(), read(reference.log_dir).Tags()
    missing = set(gone(read(reference.log_dir)))
    assert missing
    for kind in ("scalars", "images", "histograms", "tensors"):
        assert set(off[kind]) == set(on[kind]) - missing


@pytest.mark.parametrize("count", [10, 11])
def test_many_layers_are_a_table_instead_of_cards(tmp_path: Path, count: int) -> None:
    board, csv = TensorBoardLogger(tmp_path), CSVLogger(tmp_path)
    one = synthetic.measurement(layers=count)
    write(PLAIN, [board, csv], [(one, [one.record()])])
    cards = [t for t in read(board.log_dir).Tags()["scalars"] if t.startswith("hessian-layers/")]
    tables = "hessian-text/layers/text_summary" in read(board.log_dir).Tags()["tensors"]
    assert (len(cards), tables) == ((20, False) if count == 10 else (0, True))
    if tables:
        (table,) = text(read(board.log_dir), "hessian-text/layers")
        name, last = list(one.layers.items())[-1]
        row = f"| `{name}` | {last.rank:,} | {last.bound:,} | {last.num_parameters:,} |"
        assert table.splitlines()[-1] == row
    csv.save()
    assert (
        f"hessian-layers/rank/net.{2 * count - 2}"
        in (Path(csv.log_dir) / "metrics.csv").read_text()
    )


def test_prefix_goes_before_every_tag(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, prefix="mine")
    write(Dashboard(), [logger], synthetic.run(1, layers=0))
    events = read(logger.log_dir)
    for kind in ("scalars", "images", "histograms"):
        assert events.Tags()[kind]
        assert all(tag.startswith("mine-hessian") for tag in events.Tags()[kind])
    page = layout(events)["mine-hessian: rank of the loss Hessian"]
    assert all(t.startswith("mine\\-hessian") for tags in page.values() for t in tags)
    assert text(events, "mine-hessian-text/about")


def test_options_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Dashboard().figures = False  # type: ignore[misc]


def large(step: int = 0) -> Measurement:
    """A measurement at p = 5,000 with ten layers, of which nothing is left out."""
    parts = {part: synthetic.dense(5000, 3000, part=part) for part in ("outer", "functional")}
    return synthetic.measurement(
        step, layers=10, total=synthetic.dense(5000, 4000, seed=step), **parts
    )


@pytest.mark.slow
def test_cost_of_a_measurement(tmp_path: Path) -> None:
    logger, dashboard = TensorBoardLogger(tmp_path), Dashboard()
    measurement = large()
    history = [{**measurement.record(), "step": i} for i in range(100)]
    write(dashboard, [logger], [(measurement, history)])  # imports, layout and texts, once a run

    def size() -> int:
        return sum(path.stat().st_size for path in Path(logger.log_dir).iterdir())

    before, seconds = size(), []
    for step in range(1, 4):
        start = time.process_time()  # of all threads; the wall clock would measure the neighbours
        dashboard.write([logger], measurement, history, step)
        seconds.append(time.process_time() - start)
    assert (size() - before) / 3 < 50_000
    assert min(seconds) < 1.0


@pytest.mark.slow
def test_nothing_drawn_is_kept(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    write(Dashboard(), [logger], synthetic.run(1))
    gc.collect()
    assert not [x for x in gc.get_objects() if issubclass(type(x), Figure)]
    # and what is remembered of an event file goes with its writer
    from lightning_hessrank.dashboard.tensorboard import _WRITTEN

    page = TensorBoardPage.of(logger)
    assert page is not None
    assert page.writer in _WRITTEN
    before = len(_WRITTEN)
    del logger, page
    gc.collect()
    assert len(_WRITTEN) < before


@pytest.mark.benchmark
def test_memory_over_200_measurements(tmp_path: Path) -> None:
    import os

    pages = os.sysconf("SC_PAGE_SIZE")

    def resident() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * pages / 2**20

    logger, dashboard = TensorBoardLogger(tmp_path), Dashboard()
    measurement = large()
    history: list[dict[str, Any]] = []
    for step in range(200):
        history.append({**measurement.record(), "step": step})
        dashboard.write([logger], measurement, history, step)
        if step == 20:
            warm = resident()
    grown = resident() - warm
    print(f"resident memory grew by {grown:.1f} MiB over 180 measurements")
    assert grown < 20
