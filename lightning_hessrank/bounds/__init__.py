"""Upper bounds on the rank of the loss Hessian: from the architecture, or from a live batch."""

from lightning_hessrank.bounds.api import batch_bound, rank_bound
from lightning_hessrank.network.operator import ToeplitzOperator
from lightning_hessrank.network.toeplitz import (
    toeplitz_figure,
    toeplitz_matrix,
    toeplitz_operator,
)

__all__ = [
    "ToeplitzOperator",
    "batch_bound",
    "rank_bound",
    "toeplitz_figure",
    "toeplitz_matrix",
    "toeplitz_operator",
]
