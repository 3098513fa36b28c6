"""The dashboard: writes what a measurement found to every logger there is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from lightning_hessrank.dashboard.images import image_sink
from lightning_hessrank.dashboard.link import announcement
from lightning_hessrank.dashboard.pages import page_sink
from lightning_hessrank.dashboard.tab.records import ABOUT, dumps, tag, texts_of
from lightning_hessrank.dashboard.tags import counts_by_label, scalars, without_layers
from lightning_hessrank.dashboard.text import bound_table, guide, layers_table
from lightning_hessrank.results import Measurement

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lightning_hessrank.dashboard.tensorboard import TensorBoardPage


#: More layers than this would bury all else under their scalars: they go into one table.
_CARDS = 10


@dataclass(frozen=True)
class Dashboard:
    """What is written for people to look at; each element can be switched off.

    Every logger gets the scalars, and figures where it has a method for images; TensorBoard gets
    everything. Call the methods on rank zero only.
    """

    name: str = "hessian"
    """First part of every tag."""
    tab: bool = True
    """What the tab "Hessian" shows besides scalars: spectrum, layers, method (TensorBoard)."""
    figures: bool = True
    """Overview of the run (an estimate with its interval), spectrum, sorted eigenvalues, layers."""
    histogram: bool = True
    """Eigenvalues relative to the tolerance, in decades (TensorBoard)."""
    text: bool = True
    """Reading guide and bound tables (TensorBoard)."""
    layout: bool = True
    """Charts on the Custom Scalars page (TensorBoard; one page per run: a user's own is kept)."""
    report: bool = True
    """The page of ``monitor.report`` at the end of training (Weights & Biases, MLflow)."""
    hparams: bool | None = None
    """Ranks as metrics of the HParams page (TensorBoard). ``None``: where there are hyperparameters
    and Lightning would write no more than the placeholder ``hp_metric``, which stays beside them;
    ``True``: always, which replaces a list of the user's own."""

    def start(self, loggers: Sequence[Any], hparams: Mapping[str, Any] | None = None) -> str:
        """Write what can be said before anything is measured.

        Args:
            loggers: ``trainer.loggers``, of any kind.
            hparams: the run's hyperparameters, for the HParams page. TensorBoard keeps the first
                list of metrics that a run has, so with ``self.hparams`` call this before Lightning
                logs them itself: not after ``on_fit_start``.

        Returns:
            Command and link that lead to the dashboard, to be printed; empty without TensorBoard.
        """
        for page in _pages(loggers):
            if self.text:
                page.add_text(f"{self.name}-text/about", guide(self.name), step=0)
            placeholder = page.has_placeholder and bool(hparams)
            if self.hparams or (self.hparams is None and placeholder):
                leaves = ("/rank", "/rank_over_bound", "-tolerance/rank_1e-3")
                metrics = [f"{self.name}{leaf}" for leaf in leaves]
                page.add_hparams(hparams or {}, metrics, keep_placeholder=self.hparams is None)
            page.flush()
        return announcement(loggers)

    def write(
        self,
        loggers: Sequence[Any],
        measurement: Measurement,
        history: Sequence[Mapping[str, Any]],
        step: int,
        details: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Write a measurement to every logger.

        Args:
            loggers: ``trainer.loggers``, of any kind.
            measurement: what was found.
            history: records of the run so far, this measurement's included.
            step: ``trainer.global_step``.
            details: thinned spectra of the run so far, for the figure of the spectrum over time.
        """
        values = scalars(measurement, self.name)
        few = values if len(measurement.layers) <= _CARDS else without_layers(values, self.name)
        for logger in loggers:
            logger.log_metrics(few if _is_tensorboard(logger) else values, step=step)
        pages = _pages(loggers)
        for page in pages:
            self._write_page(page, values, measurement, step)
        if self.figures:
            self._draw(loggers, pages, partial(draw, measurement, history, details), step)
        for page in pages:
            page.flush()

    def finish(self, loggers: Sequence[Any], write_report: Callable[[], str]) -> None:
        """Hand the report of the run to loggers that keep files.

        Args:
            loggers: ``trainer.loggers``, of any kind.
            write_report: called only where there is such a logger.
        """
        sinks = [sink for sink in map(page_sink, loggers) if sink is not None]
        if self.report and sinks:
            page = write_report()
            for sink in sinks:
                sink(f"{self.name}-report", page)

    def _write_page(
        self,
        page: TensorBoardPage,
        values: Mapping[str, float],
        measurement: Measurement,
        step: int,
    ) -> None:
        if self.layout:
            page.lay_out(self.name, values)
        if self.text and len(measurement.layers) > _CARDS:
            page.add_text(f"{self.name}-text/layers", layers_table(measurement.layers), step)
        if self.text:
            for leaf in ("bound", "batch_bound"):
                bound = getattr(measurement, leaf)
                if bound is not None:
                    page.add_text(f"{self.name}-text/{leaf}", bound_table(bound), step)
        if self.tab:
            texts = texts_of(measurement, counts_by_label(measurement.total))
            for kind, text in texts.items():
                page.add_record(tag(self.name, kind), dumps(text), step, once=kind == ABOUT)
        eigenvalues = measurement.total.eigenvalues
        if self.histogram and eigenvalues is not None:
            where = f"{self.name}-spectrum/decades_above_tolerance"
            page.add_decades(where, eigenvalues, measurement.total.tolerance, step)

    def _draw(
        self,
        loggers: Sequence[Any],
        pages: Sequence[TensorBoardPage],
        drawings: Callable[[], Iterator[tuple[str, Figure]]],
        step: int,
    ) -> None:
        sinks = [sink for sink in map(image_sink, loggers) if sink is not None]
        if not (sinks or pages):
            return
        for leaf, figure in drawings():
            where = f"{self.name}-figures/{leaf}"
            for page in pages:
                page.add_figure(where, figure, step)
            for sink in sinks:
                sink(where, figure, step)


def draw(
    measurement: Measurement,
    history: Sequence[Mapping[str, Any]],
    details: Sequence[Mapping[str, Any]] = (),
) -> Iterator[tuple[str, Figure]]:
    """Draw the figures that a measurement has data for, one at a time, with their names."""
    from lightning_hessrank.dashboard import figures

    total = measurement.total
    yield "overview", figures.history_figure(history)
    yield "sorted", figures.sorted_figure(total, measurement.bound)
    if total.eigenvalues is not None:
        yield "spectrum", figures.spectrum_figure(total)
    if any("spectrum" in each for each in details):
        yield "density", figures.density_figure(history, details)
    if measurement.layers:
        yield "layers", figures.layers_figure(measurement.layers)
        yield "layers_over_time", figures.layers_over_time_figure(history)


def _is_tensorboard(logger: Any) -> bool:
    from lightning_hessrank.dashboard.tensorboard import TensorBoardPage

    return TensorBoardPage.of(logger) is not None


def _pages(loggers: Sequence[Any]) -> list[TensorBoardPage]:
    from lightning_hessrank.dashboard.tensorboard import TensorBoardPage  # slow to import

    return [page for page in map(TensorBoardPage.of, loggers) if page is not None]
