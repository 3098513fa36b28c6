"""The rank of the loss Hessian of a live network, beside the bound its architecture implies."""

from typing import TYPE_CHECKING, Any

import lightning_hessrank.dashboard.figures  # noqa: F401  (so that results know how to plot)
from lightning_hessrank.api import batch_bound, hessian_rank, rank_bound
from lightning_hessrank.network.toeplitz import toeplitz_matrix
from lightning_hessrank.results import BoundNotAvailableError, RankBound, RankEstimate

if TYPE_CHECKING:
    from lightning_hessrank.monitor.callback import HessianRankMonitor

__version__ = "0.1.0"

__all__ = [
    "BoundNotAvailableError",
    "HessianRankMonitor",
    "RankBound",
    "RankEstimate",
    "batch_bound",
    "hessian_rank",
    "rank_bound",
    "toeplitz_matrix",
]


def __getattr__(name: str) -> Any:
    """Import the callback, and with it Lightning, on first use only."""
    if name == "HessianRankMonitor":
        from lightning_hessrank.monitor.callback import HessianRankMonitor

        return HessianRankMonitor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
