"""Upper bounds on the rank of the loss Hessian: from the architecture, or from a live batch."""

from lightning_hessrank.bounds.api import rank_bound

__all__ = ["rank_bound"]
