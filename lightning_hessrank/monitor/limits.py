"""What keeps a rank from being larger, where the numbers tell."""

from __future__ import annotations

import math

from lightning_hessrank.results import Measurement


def limited_by(measurement: Measurement, num_samples: int) -> str | None:
    """Say at which of its limits an exact rank stands; ``None`` where it is below all of them.

    A loss sees ``K'`` outputs of each of ``N`` samples, so that the outer-product Hessian has no
    more than ``N K'`` directions: the rank of a small batch is often that of the batch, and says
    nothing of the network.

    Args:
        measurement: a rank, with the bounds on it.
        num_samples: of the reference data.
    """
    total, outer = measurement.total, measurement.outer
    if total.std_error or math.isnan(total.rank):
        return None
    if total.rank == total.num_parameters:
        return "the number of parameters"
    bound, batch_bound = measurement.bound, measurement.batch_bound
    if bound is not None and bound.is_theorem and total.rank == bound.total:
        return f"the bound {bound.total} (theorem)"
    outputs = None if bound is None else bound.outputs
    if outer is not None and outputs is not None and outer.rank == num_samples * outputs:
        return (
            f"the data, in its outer-product part: {num_samples} samples × {outputs} outputs = "
            f"{num_samples * outputs}"
        )
    if batch_bound is not None and total.rank == batch_bound.total:
        return f"the batch bound {batch_bound.total}"
    return None
