"""Products with the loss Hessian, its outer-product and its functional part."""

from lightning_hessrank.hessian.function import LossFunction, LossTerm
from lightning_hessrank.hessian.operator import (
    DenseOperator,
    Progress,
    ReducedOperator,
    SymmetricOperator,
)
from lightning_hessrank.hessian.parts import LossCurvature, OutputsUnknownError
from lightning_hessrank.network.function import Evaluation
from lightning_hessrank.results import NonFiniteError

__all__ = [
    "DenseOperator",
    "Evaluation",
    "LossCurvature",
    "LossFunction",
    "LossTerm",
    "NonFiniteError",
    "OutputsUnknownError",
    "Progress",
    "ReducedOperator",
    "SymmetricOperator",
]
