"""From an operator to the rank of its matrix."""

from lightning_hessrank.estimators.dense import dense_rank

__all__ = ["dense_rank"]
