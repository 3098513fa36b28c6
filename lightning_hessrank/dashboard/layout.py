"""TensorBoard's Custom Scalars page: which charts, in which order, saying what."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from lightning_hessrank.dashboard.tab.records import MACHINE

#: Charts of one page by title, as ``SummaryWriter.add_custom_scalars`` takes them.
Charts = dict[str, list[object]]


@dataclass(frozen=True)
class LayoutKey:
    """All that the charts of one monitor depend on, so that runs of a kind share them."""

    tags: frozenset[str] = frozenset()
    """Names logged so far (without the logger's prefix)."""

    def seen(self, tags: Collection[str]) -> LayoutKey:
        """Return the key after a further measurement; a failed one takes nothing away."""
        return LayoutKey(self.tags | frozenset(tags))


def charts(key: LayoutKey, name: str, prefix: str = "") -> Charts:
    """Lay out the charts for which there are data.

    Multiline tags are regular expressions that TensorBoard matches at the start of a tag, hence
    escaped and closed; colours mean runs there, so a chart holds few tags. TensorBoard merges the
    pages of several runs by title, and draws every run under each: a title and its tags are the
    same for all runs, and say nothing that is true of some only.

    Args:
        key: names logged.
        name: the monitor's name, first part of its tags.
        prefix: the logger's own prefix of all its tags, with its joining character.
    """

    def lines(title: str, *tags: str) -> Charts:
        """A chart, where there are data for any of its tags."""
        patterns: list[object] = [f"{re.escape(prefix + t)}$" for t in tags]
        return {title: ["Multiline", patterns]} if key.tags.intersection(tags) else {}

    page = lines(
        "What is happening: rank at 1e-1, 1e-3 and machine precision, and bound",
        *(f"{name}-tolerance/rank_{t}" for t in ("1e-1", "1e-3", MACHINE)),
        f"{name}-bound/rank",
    )
    if f"{name}/rank" in key.tags:
        page |= lines(
            "Rank, bound, parameters",
            *(f"{name}/rank", f"{name}-bound/rank", f"{name}-bound/parameters"),
        )
    if f"{name}/rank_outer" in key.tags:
        page |= lines(
            "Rank and its outer-product and functional parts",
            *(f"{name}/rank{part}" for part in ("", "_outer", "_functional")),
        )
    interval = [f"{name}-estimate/{t}" for t in ("rank", "rank_lower", "rank_upper")]
    if key.tags.issuperset(interval):
        page["Estimated rank, 95 % interval"] = ["Margin", [prefix + t for t in interval]]
    return page


def page_title(name: str, prefix: str = "") -> str:
    """Heading of one monitor's charts."""
    return f"{prefix}{name}: rank of the loss Hessian"
