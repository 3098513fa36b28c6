"""Writing to TensorBoard what a logger has no method for: layout, histogram, images, text."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR, Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams as hparams_summaries

from lightning_hessrank.dashboard.layout import LayoutKey, charts, page_title
from lightning_hessrank.dashboard.tab.records import PLUGIN

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: The tag under which TensorBoard looks for the layout of a run's Custom Scalars page.
LAYOUT_TAG = "custom_scalars__config__"
#: Metric of hyperparameters that Lightning writes where the user has none.
_PLACEHOLDER = "hp_metric"
#: Histograms reach from so many decades below the tolerance to so many above, in bins of half a
#: decade: a tolerance of 1e-13 leaves thirteen above.
BELOW, ABOVE = 8, 16


@dataclass
class _Written:
    """What this process has written to one event file, by any monitor."""

    layouts: dict[tuple[str, str], LayoutKey] = field(default_factory=dict)
    """Per monitor's name and logger's prefix: a run has one page, so monitors share it."""
    texts: dict[str, str] = field(default_factory=dict)
    """Last text per tag."""


_WRITTEN: WeakKeyDictionary[SummaryWriter, _Written] = WeakKeyDictionary()


@dataclass(frozen=True)
class TensorBoardPage:
    """A run's event file, and the prefix that its logger puts before every tag."""

    writer: SummaryWriter
    prefix: str
    """With its joining character; only ``log_metrics`` adds it by itself."""
    has_placeholder: bool = False
    """Whether Lightning will write ``hp_metric`` where the user has no metrics of hyperparameters
    of their own."""

    @classmethod
    def of(cls, logger: Any) -> TensorBoardPage | None:
        """Return the page of a logger that writes event files, else ``None``."""
        writer = getattr(logger, "experiment", None)
        if not isinstance(writer, SummaryWriter):  # hasattr is true of anything in fast_dev_run
            return None
        prefix = getattr(logger, "_prefix", "")
        return cls(
            writer,
            f"{prefix}{logger.LOGGER_JOIN_CHAR}" if prefix else "",
            has_placeholder=getattr(logger, "_default_hp_metric", False),
        )

    def lay_out(self, name: str, tags: Collection[str]) -> None:
        """Write the charts for these tags, beside those of other monitors in the same run.

        Nothing is written if it would add nothing, or replace a layout of the user's own.
        """
        layouts = self._written().layouts
        before = layouts.get((name, self.prefix), LayoutKey())
        key = before.seen(tags)
        layouts[name, self.prefix] = key
        new = charts(key, name, self.prefix)
        if new == charts(before, name, self.prefix) or self._has_users_layout():
            return
        pages = {page_title(*owner): charts(k, *owner) for owner, k in layouts.items()}
        self.writer.add_custom_scalars({title: page for title, page in pages.items() if page})

    def add_decades(self, tag: str, eigenvalues: Tensor, tolerance: float, step: int) -> None:
        """Write the histogram of ``log10(|λ| / tolerance)`` with fixed bins, clipped to both ends.

        Fixed bins keep it a tenth of the default's size, and comparable over steps; what is right
        of zero is counted in the rank.
        """
        # Zero over zero, of a zero matrix, is below any tolerance.
        decades = (eigenvalues.abs() / tolerance).log10().nan_to_num(-float(BELOW))
        decades = decades.clamp(-BELOW, ABOVE)
        counts, edges = torch.histogram(decades, bins=2 * (BELOW + ABOVE), range=(-BELOW, ABOVE))
        self.writer.add_histogram_raw(
            self.prefix + tag,
            min=-BELOW,
            max=ABOVE,
            num=len(decades),
            sum=float(decades.sum()),
            sum_squares=float(decades.square().sum()),
            bucket_limits=edges[1:].tolist(),
            bucket_counts=counts.tolist(),
            global_step=step,
        )

    def add_figure(self, tag: str, figure: Figure, step: int) -> None:
        """Write a figure as a palette image, a third of the size that ``SummaryWriter`` makes."""
        from lightning_hessrank.dashboard.figures import png

        encoded, width, height = png(figure)
        image = Summary.Image(
            height=height, width=width, colorspace=3, encoded_image_string=encoded
        )
        self._add(Summary(value=[Summary.Value(tag=self.prefix + tag, image=image)]), step)

    def add_text(self, tag: str, markdown: str, step: int) -> None:
        """Write a text, unless it is what was last written there."""
        texts = self._written().texts
        tag = self.prefix + tag
        if texts.get(tag) != markdown:
            texts[tag] = markdown
            self.writer.add_text(tag, markdown, step)

    def add_record(self, tag: str, text: str, step: int, *, once: bool = False) -> None:
        """Write what the tab reads: a text under its own plugin's name.

        Args:
            tag: without prefix.
            text: JSON.
            step: of the measurement.
            once: leave it out where it is what was last written there.
        """
        texts = self._written().texts
        tag = self.prefix + tag
        if once and texts.get(tag) == text:
            return
        if once:
            texts[tag] = text
        metadata = SummaryMetadata(
            plugin_data=SummaryMetadata.PluginData(plugin_name=PLUGIN),
            data_class=DATA_CLASS_TENSOR,
        )
        tensor = TensorProto(
            dtype=DT_STRING, string_val=[text.encode()], tensor_shape=TensorShapeProto()
        )
        value = Summary.Value(tag=tag, metadata=metadata, tensor=tensor)
        self._add(Summary(value=[value]), step)

    def add_hparams(
        self, params: Mapping[str, Any], metrics: Sequence[str], *, keep_placeholder: bool = False
    ) -> None:
        """Write hyperparameters, and the tags that the HParams page shows beside them.

        Args:
            params: of the run.
            metrics: tags, without prefix.
            keep_placeholder: also show the metric that Lightning has for users to fill.
        """
        plain = {
            k: v if isinstance(v, (bool, int, float, str)) else str(v) for k, v in params.items()
        }
        tags = {f"{self.prefix}{metric}": 0.0 for metric in metrics}
        if keep_placeholder:
            tags[_PLACEHOLDER] = 0.0
        for summary in hparams_summaries(plain, tags):
            self._add(summary, 0)

    def flush(self) -> None:
        """Let the browser see it: measurements are rare, and seconds apart at least."""
        self.writer.flush()

    def _written(self) -> _Written:
        return _WRITTEN.setdefault(self.writer, _Written())

    def _add(self, summary: Summary, step: int) -> None:
        self.writer._get_file_writer().add_summary(summary, step)

    def _has_users_layout(self) -> bool:
        """Whether the last layout in the run's event files is not of this package."""
        self.writer.flush()
        last = b""
        for path in sorted(Path(self.writer.get_logdir()).glob("*.tfevents.*")):
            if not path.stat().st_size:
                continue  # of a run that died at once; nothing can be mapped of it
            with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
                start = content.rfind(LAYOUT_TAG.encode())
                last = content[start:] if start >= 0 else last
        return bool(last) and page_title("").encode() not in last
