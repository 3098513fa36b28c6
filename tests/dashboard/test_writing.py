"""Everything that is written, read back: event files, other loggers, runs that share a folder."""

from __future__ import annotations

import gc
import io
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.loggers.logger import DummyLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams import metadata as hparams_metadata

from lightning_hessrank.dashboard import Dashboard, dashboard_url, scalars
from lightning_hessrank.dashboard.tensorboard import LAYOUT_TAG, TensorBoardPage
from lightning_hessrank.dashboard.text import bound_table, guide
from lightning_hessrank.results import Measurement
from tests.dashboard import synthetic

#: Drawing takes most of the time.
PLAIN = Dashboard(figures=False)
FIGURES = ["overview", "sorted", "spectrum", "layers", "layers_over_time"]


def write(dashboard: Dashboard, loggers: list[Any], runs: Any = None) -> None:
    dashboard.start(loggers)
    for measurement, history in runs if runs is not None else synthetic.run(2):
        dashboard.write(loggers, measurement, history, measurement.step)


def read(folder: str | Path) -> EventAccumulator:
    kinds = ("scalars", "images", "histograms", "tensors")
    return EventAccumulator(str(folder), size_guidance=dict.fromkeys(kinds, 0)).Reload()


def layout(events: EventAccumulator) -> dict[str, dict[str, list[str]]]:
    """The page in force: category -> chart -> tags."""
    proto = Layout.FromString(events.Tensors(LAYOUT_TAG)[-1].tensor_proto.string_val[0])
    return {
        category.title: {
            chart.title: list(chart.multiline.tag)
            or [x for s in chart.margin.series for x in (s.value, s.lower, s.upper)]
            for chart in category.chart
        }
        for category in proto.category
    }


def text(events: EventAccumulator, tag: str) -> list[str]:
    return [e.tensor_proto.string_val[0].decode() for e in events.Tensors(f"{tag}/text_summary")]


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


def test_histogram_counts_the_eigenvalues_beyond_the_tolerance(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    total = synthetic.dense(400, 250, decades=14)
    write(Dashboard(), [logger], [(Measurement(0, 0, total), [])])
    (event,) = read(logger.log_dir).Histograms("hessian-spectrum/decades_above_tolerance")
    found = event.histogram_value
    assert (found.min, found.max, found.num) == (-8, 16, 400)
    limits, counts = np.array(found.bucket_limit), np.array(found.bucket)
    np.testing.assert_allclose(limits[-48:], np.arange(-7.5, 16.5, 0.5))
    assert counts[limits > 0].sum() == total.rank
    assert counts.sum() == 400
    assert total.eigenvalues is not None
    decades = np.log10(np.abs(total.eigenvalues.numpy()) / total.tolerance).clip(-8, 16)
    assert found.sum == pytest.approx(decades.sum())


@pytest.mark.parametrize("rank", [0, 5])
def test_histogram_of_a_zero_and_of_a_full_matrix(tmp_path: Path, rank: int) -> None:
    logger = TensorBoardLogger(tmp_path)
    total = synthetic.dense(5, rank, noise=0.0)
    write(Dashboard(), [logger], [(Measurement(0, 0, total), [])])
    (event,) = read(logger.log_dir).Histograms("hessian-spectrum/decades_above_tolerance")
    limits = np.array(event.histogram_value.bucket_limit)
    assert np.array(event.histogram_value.bucket)[limits > 0].sum() == rank


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


def test_charts_match_exactly_their_tags(tmp_path: Path) -> None:
    import re

    logger = TensorBoardLogger(tmp_path)
    write(PLAIN, [logger])
    events = read(logger.log_dir)
    ((title, page),) = layout(events).items()
    assert title == "hessian: rank of the loss Hessian"
    matched = {
        chart: [t for pattern in tags for t in events.Tags()["scalars"] if re.match(pattern, t)]
        for chart, tags in page.items()
    }
    bound = "hessian-bound/rank"
    tolerances = [f"hessian-tolerance/rank_{t}" for t in ("1e-1", "1e-3", "machine")]
    assert matched == {
        "What is happening: rank at 1e-1, 1e-3 and machine precision, and bound": [
            *tolerances,
            bound,
        ],
        "Rank, bound, parameters": [
            "hessian/rank",
            bound,
            "hessian-bound/parameters",
        ],
        "Rank and its outer-product and functional parts": [
            "hessian/rank",
            "hessian/rank_outer",
            "hessian/rank_functional",
        ],
    }
    assert len(events.Tensors(LAYOUT_TAG)) == 1


def test_titles_are_true_of_every_run_that_is_drawn_under_them(tmp_path: Path) -> None:
    """TensorBoard merges charts by title and draws all runs in each, a theorem or not."""
    pages = {}
    for name, changes in (
        ("theorem", {"bound": synthetic.bound(is_theorem=True), "outer": None}),
        ("reference", {}),
        ("estimate", {"stochastic": True}),
    ):
        logger = TensorBoardLogger(tmp_path, name=name)
        write(PLAIN, [logger], synthetic.run(1, **changes))
        (pages[name],) = layout(read(logger.log_dir)).values()
    merged = {title: tags for page in pages.values() for title, tags in page.items()}
    for page in pages.values():
        assert all(merged[title] == tags for title, tags in page.items())
    assert not any(word in title for title in merged for word in ("theorem", "reference"))
    assert list(pages["theorem"]) == [
        "What is happening: rank at 1e-1, 1e-3 and machine precision, and bound",
        "Rank, bound, parameters",
    ]
    assert pages["estimate"]["Estimated rank, 95 % interval"] == [
        f"hessian-estimate/{x}" for x in ("rank", "rank_lower", "rank_upper")
    ]
    assert "Rank, bound, parameters" not in pages["estimate"]


def test_a_failed_measurement_takes_no_chart_away_and_the_next_adds_them(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    good = synthetic.measurement(15)
    runs = [(synthetic.failed(0), []), (good, []), (synthetic.failed(30), [])]
    write(PLAIN, [logger], runs)
    events = read(logger.log_dir)
    assert len(layout(events)["hessian: rank of the loss Hessian"]) == 3
    assert [e.step for e in events.Scalars("hessian/rank")] == [0, 15, 30]
    assert np.isnan(events.Scalars("hessian/rank")[0].value)


def test_titles_stay_when_a_later_measurement_has_no_bound(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    theorem = synthetic.measurement(0, bound=synthetic.bound(is_theorem=True))
    write(PLAIN, [logger], [(theorem, []), (synthetic.measurement(1, bound=None), [])])
    events = read(logger.log_dir)
    assert len(events.Tensors(LAYOUT_TAG)) == 1
    assert len(layout(events)["hessian: rank of the loss Hessian"]) == 3


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


def test_two_monitors_share_a_page(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    for name in ("hessian", "validation"):
        write(Dashboard(name=name, figures=False), [logger])
    pages = layout(read(logger.log_dir))
    assert list(pages) == [f"{n}: rank of the loss Hessian" for n in ("hessian", "validation")]
    assert all(len(page) == 3 for page in pages.values())


@pytest.mark.parametrize("when", ["before", "after", "before a resume"])
def test_a_layout_of_the_users_own_stays(tmp_path: Path, when: str) -> None:
    logger = TensorBoardLogger(tmp_path, version=0)
    own = {"mine": {"loss": ["Multiline", ["train_loss"]]}}
    if when != "after":
        logger.experiment.add_custom_scalars(own)
    if when == "before a resume":
        logger.finalize("success")
        logger = TensorBoardLogger(tmp_path, version=0)
    write(PLAIN, [logger])
    if when == "after":
        logger.experiment.add_custom_scalars(own)
        write(PLAIN, [logger])
    logger.experiment.flush()
    assert layout(read(logger.log_dir)) == {"mine": {"loss": ["train_loss"]}}


def test_an_empty_event_file_of_a_run_that_died_is_no_obstacle(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, version=0)
    Path(logger.log_dir).mkdir(parents=True)
    (Path(logger.log_dir) / "events.out.tfevents.1.host").touch()
    write(PLAIN, [logger])
    logger.experiment.flush()
    written = [p for p in Path(logger.log_dir).glob("*.tfevents.*") if p.stat().st_size]
    assert LAYOUT_TAG in read(written[0]).Tags()["tensors"]


def test_resume_into_the_same_folder(tmp_path: Path) -> None:
    runs = synthetic.run(4)
    for part in (runs[:2], runs[2:]):
        logger = TensorBoardLogger(tmp_path, version=0)
        write(PLAIN, [logger], part)
        logger.finalize("success")
    events = read(logger.log_dir)
    assert [e.step for e in events.Scalars("hessian/rank")] == [m.step for m, _ in runs]
    assert list(layout(events)) == ["hessian: rank of the loss Hessian"]


class WithImages(CSVLogger):
    """Like Weights & Biases' logger of Lightning."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.images: list[tuple[str, int | None, Any]] = []

    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
        self.images += [(key, step, image) for image in images]


class MLflowClient:
    def __init__(self) -> None:
        self.logged: list[tuple[str, str]] = []

    def log_figure(self, run_id: str, figure: Figure, artifact_file: str) -> None:
        assert isinstance(figure, Figure)
        self.logged.append((run_id, artifact_file))


class CometExperiment:
    def __init__(self) -> None:
        self.logged: list[tuple[str, int]] = []

    def log_figure(
        self, figure_name: str, figure: Figure, overwrite: bool = False, step: int = 0
    ) -> None:
        assert isinstance(figure, Figure)
        self.logged.append((figure_name, step))


class Elsewhere:
    """A logger around someone else's experiment."""

    run_id = "run7"

    def __init__(self, experiment: Any) -> None:
        self.experiment = experiment
        self.metrics: list[tuple[Mapping[str, float], int]] = []

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self.metrics.append((metrics, step))


def test_any_logger_gets_what_it_can_take(tmp_path: Path) -> None:
    class Bare:
        """Has no experiment, as Lightning's base class allows."""

        log_metrics = Elsewhere.log_metrics
        metrics: ClassVar[list[Any]] = []

    csv, images = CSVLogger(tmp_path / "csv"), WithImages(tmp_path / "images")
    mlflow, comet, plain = map(Elsewhere, (MLflowClient(), CometExperiment(), object()))
    board = TensorBoardLogger(tmp_path / "board")
    loggers = [csv, images, mlflow, comet, plain, board, Bare(), DummyLogger()]
    (one,) = synthetic.run(1)
    write(Dashboard(), loggers, [one])
    csv.save()
    header, row = (Path(csv.log_dir) / "metrics.csv").read_text().splitlines()
    found = dict(zip(header.split(","), row.split(","), strict=True))
    values = scalars(one[0])
    assert {k: float(v) for k, v in found.items()} == {**values, "step": 0}
    assert mlflow.metrics == comet.metrics == plain.metrics == [(values, 0)]

    assert [key for key, _, _ in images.images] == [f"hessian-figures/{x}" for x in FIGURES]
    assert {(step, image.size, image.mode) for _, step, image in images.images} == {
        (0, (672, 320), "RGB")
    }
    assert mlflow.experiment.logged == [("run7", f"hessian-figures/{x}/0.png") for x in FIGURES]
    assert comet.experiment.logged == [(f"hessian-figures/{x}", 0) for x in FIGURES]
    assert len(read(board.log_dir).Tags()["images"]) == 5


def test_no_logger_and_the_stand_in_of_fast_dev_run(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    monkeypatch.setattr(
        "lightning_hessrank.dashboard.board.draw", lambda *_: drawn.append("figure") or []
    )
    for loggers in ([], [DummyLogger()]):
        assert Dashboard().start(loggers) == ""
        write(Dashboard(), loggers)
    assert not drawn  # nobody would see it


def test_hparams_on_request(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    Dashboard(hparams=False).start([logger], {"lr": 0.1})
    Dashboard(hparams=True).start([logger], {"lr": 0.1, "widths": (3, 4)})
    logger.log_hyperparams({"lr": 0.1, "widths": (3, 4)})  # as Lightning does after `setup`
    logger.experiment.flush()
    events = read(logger.log_dir)
    content = events.SummaryMetadata("_hparams_/experiment").plugin_data.content
    experiment = hparams_metadata.parse_experiment_plugin_data(content)
    assert [m.name.tag for m in experiment.metric_infos] == [
        "hessian/rank",
        "hessian/rank_over_bound",
        "hessian-tolerance/rank_1e-3",
    ]
    assert {h.name for h in experiment.hparam_infos} == {"lr", "widths"}


def test_hparams_by_default_only_beside_the_placeholder(tmp_path: Path) -> None:
    """Where the user has metrics of their own, or no hyperparameters, nothing is written."""
    own = TensorBoardLogger(tmp_path, name="own", default_hp_metric=False)
    none, usual = (TensorBoardLogger(tmp_path, name=name) for name in ("none", "usual"))
    for logger, params in ((own, {"lr": 0.1}), (none, {}), (usual, {"lr": 0.1})):
        Dashboard().start([logger], params)
    usual.log_hyperparams({"lr": 0.1})  # Lightning's placeholder does not take ours away
    own.log_hyperparams({"lr": 0.1}, {"val_acc": 0.5})
    listed = {}
    for logger in (own, none, usual):
        logger.experiment.flush()
        with suppress(KeyError):
            metadata = read(logger.log_dir).SummaryMetadata("_hparams_/experiment")
            found = hparams_metadata.parse_experiment_plugin_data(metadata.plugin_data.content)
            listed[logger.name] = [m.name.tag for m in found.metric_infos]
    assert listed == {
        "own": ["val_acc"],
        "usual": [
            "hessian/rank",
            "hessian/rank_over_bound",
            "hessian-tolerance/rank_1e-3",
            "hp_metric",
        ],
    }


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


def test_announcement_leads_to_the_run(tmp_path: Path) -> None:
    from urllib.parse import urlsplit

    logger = TensorBoardLogger(tmp_path / "my runs", name="digits", prefix="p")
    said = Dashboard(name="h").start([CSVLogger(tmp_path), logger])
    title, command, link = said.splitlines()
    assert title == "Rank of the loss Hessian on TensorBoard:"
    folder = f"'{tmp_path / 'my runs'}'"
    assert command == f"  tensorboard --logdir {folder} --samples_per_plugin images=100"
    url = urlsplit(link.strip())
    assert (url.netloc, url.path, url.query) == ("localhost:6006", "/", "")
    assert url.fragment == "hessian"


def test_the_stock_cards_are_pinned_and_not_smoothed() -> None:
    import json
    from urllib.parse import parse_qs, urlsplit

    url = urlsplit(dashboard_url("h", prefix="p-", run="digits/version_0"))
    assert (url.path, url.fragment) == ("/", "timeseries&_smoothingWeight=0")
    query = parse_qs(url.query)
    assert query["smoothing"] == ["0"]
    cards = json.loads(query["pinnedCards"][0])
    assert [c["tag"] for c in cards] == [
        "p-h-figures/overview",
        "p-h-figures/sorted",
        "p-h-tolerance/rank_machine",
        "p-h-estimate/rank",
        "p-h/rank_over_bound",
        "p-h-tolerance/rank_1e-3",
    ]
    images = [c for c in cards if c["plugin"] == "images"]
    assert {(c["runId"], c["sample"]) for c in images} == {
        ("defaultExperimentId/digits/version_0", 0)
    }


def test_options_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Dashboard().figures = False  # type: ignore[misc]


def large(step: int = 0) -> Measurement:
    """A measurement at p = 5,000 with ten layers, of which nothing is left out."""
    parts = {part: synthetic.dense(5000, 3000, part=part) for part in ("outer", "functional")}
    return synthetic.measurement(
        step, layers=10, total=synthetic.dense(5000, 4000, seed=step), **parts
    )


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
