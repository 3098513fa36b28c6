"""The dashboard: writes what a measurement found to every logger there is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lightning_hessrank.dashboard.images import image_sink
from lightning_hessrank.dashboard.link import announcement
from lightning_hessrank.dashboard.tab.records import ABOUT, dumps, tag, texts_of
from lightning_hessrank.dashboard.tags import counts_by_label, scalars
from lightning_hessrank.dashboard.text import bound_table, guide
from lightning_hessrank.results import Measurement

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lightning_hessrank.dashboard.tensorboard import TensorBoardPage


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
    hparams: bool = False
    """Ranks as metrics of the HParams page (TensorBoard; replaces the user's own list of them)."""

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
            if self.hparams:
                leaves = ("/rank", "/rank_over_bound", "-tolerance/rank_1e-3")
                page.add_hparams(hparams or {}, [f"{self.name}{leaf}" for leaf in leaves])
            page.flush()
        return announcement(loggers, self.name)

    def write(
        self,
        loggers: Sequence[Any],
        measurement: Measurement,
        history: Sequence[Mapping[str, Any]],
        step: int,
    ) -> None:
        """Write a measurement to every logger.

        Args:
            loggers: ``trainer.loggers``, of any kind.
            measurement: what was found.
            history: records of the run so far, this measurement's included.
            step: ``trainer.global_step``.
        """
        values = scalars(measurement, self.name)
        for logger in loggers:
            logger.log_metrics(values, step=step)
        pages = _pages(loggers)
        for page in pages:
            self._write_page(page, values, measurement, step)
        if self.figures:
            self._draw(loggers, pages, measurement, history, step)
        for page in pages:
            page.flush()

    def _write_page(
        self,
        page: TensorBoardPage,
        values: Mapping[str, float],
        measurement: Measurement,
        step: int,
    ) -> None:
        if self.layout:
            page.lay_out(self.name, values, measurement.bound)
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
        measurement: Measurement,
        history: Sequence[Mapping[str, Any]],
        step: int,
    ) -> None:
        sinks = [sink for sink in map(image_sink, loggers) if sink is not None]
        if not (sinks or pages):
            return
        for leaf, figure in draw(measurement, history):
            where = f"{self.name}-figures/{leaf}"
            for page in pages:
                page.add_figure(where, figure, step)
            for sink in sinks:
                sink(where, figure, step)


def draw(
    measurement: Measurement, history: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, Figure]]:
    """Draw the figures that a measurement has data for, one at a time, with their names."""
    from lightning_hessrank.dashboard import figures

    total = measurement.total
    yield "overview", figures.history_figure(history)
    yield "sorted", figures.sorted_figure(total, measurement.bound)
    if total.eigenvalues is not None:
        yield "spectrum", figures.spectrum_figure(total)
    if measurement.layers:
        yield "layers", figures.layers_figure(measurement.layers)
        yield "layers_over_time", figures.layers_over_time_figure(history)


def _pages(loggers: Sequence[Any]) -> list[TensorBoardPage]:
    from lightning_hessrank.dashboard.tensorboard import TensorBoardPage  # slow to import

    return [page for page in map(TensorBoardPage.of, loggers) if page is not None]
