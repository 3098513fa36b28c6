"""The rank of the loss Hessian of a live network, beside the bound its architecture implies."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import lightning_hessrank.dashboard.figures  # noqa: F401  (so that results know how to plot)

if TYPE_CHECKING:
    from lightning_hessrank.api import batch_bound, hessian_rank, rank_bound
    from lightning_hessrank.monitor.callback import HessianRankMonitor
    from lightning_hessrank.network.toeplitz import toeplitz_matrix
    from lightning_hessrank.results import BoundNotAvailableError, RankBound, RankEstimate

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

_HOMES = {
    "BoundNotAvailableError": "results",
    "HessianRankMonitor": "monitor.callback",
    "RankBound": "results",
    "RankEstimate": "results",
    "batch_bound": "api",
    "hessian_rank": "api",
    "rank_bound": "api",
    "toeplitz_matrix": "network.toeplitz",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use: TensorBoard loads the tab without torch or Lightning."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names too, before their first use."""
    return sorted({*globals(), *__all__})
