"""Writing to TensorBoard what a logger has no method for: layout, histogram, images, text."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from torch.utils.tensorboard import SummaryWriter

from lightning_hessrank.dashboard.layout import LayoutKey, charts, page_title
from lightning_hessrank.results import RankBound

#: The tag under which TensorBoard looks for the layout of a run's Custom Scalars page.
LAYOUT_TAG = "custom_scalars__config__"


@dataclass
class _Written:
    """What this process has written to one event file, by any monitor."""

    layouts: dict[tuple[str, str], LayoutKey] = field(default_factory=dict)
    """Per monitor's name and logger's prefix: a run has one page, so monitors share it."""


_WRITTEN: WeakKeyDictionary[SummaryWriter, _Written] = WeakKeyDictionary()


@dataclass(frozen=True)
class TensorBoardPage:
    """A run's event file, and the prefix that its logger puts before every tag."""

    writer: SummaryWriter
    prefix: str
    """With its joining character; only ``log_metrics`` adds it by itself."""

    @classmethod
    def of(cls, logger: Any) -> TensorBoardPage | None:
        """Return the page of a logger that writes event files, else ``None``."""
        writer = logger.experiment
        if not isinstance(writer, SummaryWriter):  # hasattr is true of anything in fast_dev_run
            return None
        prefix = getattr(logger, "_prefix", "")
        return cls(writer, f"{prefix}{logger.LOGGER_JOIN_CHAR}" if prefix else "")

    def lay_out(self, name: str, tags: Collection[str], bound: RankBound | None) -> None:
        """Write the charts for these tags, beside those of other monitors in the same run.

        Nothing is written if it would add nothing, or replace a layout of the user's own.
        """
        written = _WRITTEN.setdefault(self.writer, _Written())
        before = written.layouts.get((name, self.prefix), LayoutKey())
        key = before.seen(tags, bound is not None and bound.is_theorem)
        old = charts(before, name, self.prefix)
        written.layouts[name, self.prefix] = key
        if charts(key, name, self.prefix) == old or self._has_users_layout():
            return
        pages = {page_title(*owner): charts(k, *owner) for owner, k in written.layouts.items()}
        self.writer.add_custom_scalars({title: page for title, page in pages.items() if page})

    def _has_users_layout(self) -> bool:
        """Whether the last layout in the run's event files is not of this package."""
        self.writer.flush()
        last = b""
        for path in sorted(Path(self.writer.get_logdir()).glob("*.tfevents.*")):
            with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
                start = content.rfind(LAYOUT_TAG.encode())
                last = content[start:] if start >= 0 else last
        return bool(last) and page_title("").encode() not in last

    def flush(self) -> None:
        """Let the browser see it: measurements are rare, and seconds apart at least."""
        self.writer.flush()
