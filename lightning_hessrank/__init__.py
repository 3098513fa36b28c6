"""Rank of the loss Hessian of a live network, and the bounds that its architecture implies.

What is public, name by name; all else is private and may change.

In ``lightning_hessrank``:

=========================  =========================================================================
``HessianRankMonitor``     the callback: ``Trainer(callbacks=[HessianRankMonitor()])``
``HessianRankWarning``     what it warns with, to be filtered like any warning
``hessian_rank``           the rank of a loss Hessian, without a Trainer
``rank_bound``             a bound on it from the architecture, by its linear surrogate
``batch_bound``            a bound on it from the live activations of given data
``toeplitz_matrix``        the matrix that a layer multiplies its input with
``RankEstimate``           what ``hessian_rank`` returns: a rank with tolerance, method and cost
``RankBound``              what the bounds return: theorem or reference line, layer by layer
``BoundNotAvailableError`` no bound can be given for a network; the message says why
=========================  =========================================================================

In modules of their own:

=====================================================  =============================================
``lightning_hessrank.metrics.HessianRank``             the rank as a ``torchmetrics.Metric``
``lightning_hessrank.dashboard.Dashboard``             what the monitor writes besides scalars
``lightning_hessrank.estimators.estimator``            add an estimator: ``method="its name"``
``lightning_hessrank.estimators.Request``              what an estimator is asked for
``lightning_hessrank.hessian.operator.SymmetricOperator``  what it gets: a matrix by its products
``lightning_hessrank.tolerance.numerical_rank``        the one definition of a rank at a tolerance
``lightning_hessrank.network.layers.reads``            add a type of layer
``lightning_hessrank.network.layers.LayerCall``        the call of PyTorch that it reads
``lightning_hessrank.network.layers.Layer``            what it makes of it: a linear map
``lightning_hessrank.network.layers.Slices``           where in a weight the map's blocks are
``lightning_hessrank.network.layers.channels``         how channels lie among samples and places
``lightning_hessrank.network.losses.add_loss``         add a loss
``lightning_hessrank.dashboard.images.image_logger``   add a logger that takes images
``lightning_hessrank.dashboard.images.ImageSink``      what takes them: ``sink(tag, figure, step)``
=====================================================  =============================================

The command line is ``hessrank``, or ``python -m lightning_hessrank``. The repository's
CONTRIBUTING.md shows how to add what can be added.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_hessrank.api import batch_bound, hessian_rank, rank_bound
    from lightning_hessrank.monitor.callback import HessianRankMonitor
    from lightning_hessrank.monitor.failures import HessianRankWarning
    from lightning_hessrank.network.toeplitz import toeplitz_matrix
    from lightning_hessrank.results import BoundNotAvailableError, RankBound, RankEstimate

__version__ = "0.2.0"

__all__ = [
    "BoundNotAvailableError",
    "HessianRankMonitor",
    "HessianRankWarning",
    "RankBound",
    "RankEstimate",
    "batch_bound",
    "hessian_rank",
    "rank_bound",
    "toeplitz_matrix",
]

#: Where the public names are made. Imported on first use: `hessrank --version` needs no PyTorch,
#: and nothing but the monitor needs Lightning.
_HOMES = {
    "BoundNotAvailableError": "results",
    "HessianRankMonitor": "monitor.callback",
    "HessianRankWarning": "monitor.failures",
    "RankBound": "results",
    "RankEstimate": "results",
    "batch_bound": "api",
    "hessian_rank": "api",
    "rank_bound": "api",
    "toeplitz_matrix": "network.toeplitz",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """Show the public names."""
    return sorted({*globals(), *__all__})
