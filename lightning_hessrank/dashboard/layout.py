"""TensorBoard's Custom Scalars page: which charts, in which order, saying what."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace

from lightning_hessrank.dashboard.tab.records import MACHINE
from lightning_hessrank.results import RankBound, validity

#: Charts of one page by title, as ``SummaryWriter.add_custom_scalars`` takes them.
Charts = dict[str, list[object]]


@dataclass(frozen=True)
class LayoutKey:
    """All that the charts of one monitor depend on, so that runs of a kind share them."""

    tags: frozenset[str] = frozenset()
    """Names logged so far (without the logger's prefix)."""
    is_theorem: bool = False
    """Of the linear bound, where there is one."""

    def seen(self, tags: Collection[str], bound: RankBound | None) -> LayoutKey:
        """Return the key after a further measurement; a failed one takes nothing away."""
        is_theorem = self.is_theorem if bound is None else bound.is_theorem
        return replace(self, tags=self.tags | frozenset(tags), is_theorem=is_theorem)


def charts(key: LayoutKey, name: str, prefix: str = "") -> Charts:
    """Lay out the charts for which there are data.

    Multiline tags are regular expressions that TensorBoard matches at the start of a tag, hence
    escaped and closed; colours mean runs there, so a chart holds few tags. Titles depend on the
    kind of run only: TensorBoard merges the pages of several runs by title.

    Args:
        key: names logged, and whether the bound is a theorem.
        name: the monitor's name, first part of its tags.
        prefix: the logger's own prefix of all its tags, with its joining character.
    """

    def lines(title: str, *tags: str) -> Charts:
        there = [t for t in tags if t in key.tags]
        return {title: ["Multiline", [f"{re.escape(prefix + t)}$" for t in there]]} if there else {}

    worth = validity(key.is_theorem)
    bound = f"{name}-bound/rank"
    page = lines(
        _overview_title(key, name, worth),
        *(f"{name}-tolerance/rank_{t}" for t in ("1e-1", "1e-3", MACHINE)),
        bound,
    )
    if f"{name}/rank" in key.tags:
        parameters = f"{name}-bound/parameters"
        if bound in key.tags:
            page |= lines(f"Rank, bound ({worth}), parameters", f"{name}/rank", bound, parameters)
        else:
            page |= lines("Rank, parameters", f"{name}/rank", parameters)
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


def _overview_title(key: LayoutKey, name: str, worth: str) -> str:
    labels = {"1e-1": "1e-1", "1e-3": "1e-3", MACHINE: "machine precision"}
    there = [text for t, text in labels.items() if f"{name}-tolerance/rank_{t}" in key.tags]
    *first, last = there or ["its tolerance"]
    title = f"What is happening: rank at {', '.join(first)}{' and ' if first else ''}{last}"
    if f"{name}-estimate/rank" in key.tags:
        title = title.replace("rank at", "estimated rank at")
    return f"{title}; bound ({worth})" if f"{name}-bound/rank" in key.tags else title
