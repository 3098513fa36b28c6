"""From an operator to the rank of its matrix."""

from lightning_hessrank.estimators.choose import MethodChoice, choose_method, estimate_rank
from lightning_hessrank.estimators.dense import dense_parts, dense_rank, smaller_rank
from lightning_hessrank.estimators.lanczos import UnresolvedError, lanczos_rank
from lightning_hessrank.estimators.registry import Request, estimator, method_names
from lightning_hessrank.estimators.sketch import sketch_rank

__all__ = [
    "MethodChoice",
    "Request",
    "UnresolvedError",
    "choose_method",
    "dense_parts",
    "dense_rank",
    "estimate_rank",
    "estimator",
    "lanczos_rank",
    "method_names",
    "sketch_rank",
    "smaller_rank",
]
