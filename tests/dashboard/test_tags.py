"""What is logged under which name, and that no stochastic count poses as an exact one."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from lightning_hessrank.dashboard import scalars
from lightning_hessrank.dashboard.tags import counts_by_label, tolerance_label
from lightning_hessrank.results import LayerRank, Measurement
from lightning_hessrank.tolerance import COUNT_TOLERANCES
from tests.dashboard import synthetic

EXACT = {
    "hessian/rank": 747,
    "hessian/rank_outer": 520,
    "hessian/rank_functional": 243,
    "hessian/rank_over_bound": 747 / 765,
    "hessian/rank_over_parameters": 747 / 1210,
    "hessian/batch_bound": 1100,
    "hessian-bound/rank": 765,
    "hessian-bound/rank_outer": 510,
    "hessian-bound/rank_functional": 510,
    "hessian-bound/parameters": 1210,
    "hessian-tolerance/rank_machine": 747,
    "hessian-layers/rank/net.0": 57,
    "hessian-layers/rank_over_bound/net.0": 57 / 63,
    "hessian-data/loss": 2.3,
    "hessian-time/seconds": 2.0,
    "hessian-time/products": 3630,
    "hessian-time/overhead": 0.04,
    "hessian-time/skipped": 0,
}


def test_every_name_of_an_exact_measurement() -> None:
    one = synthetic.measurement()
    values = scalars(one)
    assert values == values | EXACT
    eigenvalues = one.total.eigenvalues
    assert eigenvalues is not None
    for rtol in COUNT_TOLERANCES:
        count = int((eigenvalues.abs() > rtol * eigenvalues.abs().max()).sum())
        assert values[f"hessian-tolerance/rank_1e-{round(-math.log10(rtol))}"] == count
    assert values["hessian-spectrum/lambda_max"] == eigenvalues[-1]
    assert values["hessian-spectrum/lambda_min"] == eigenvalues[0]
    signs = values["hessian-spectrum/n_positive"], values["hessian-spectrum/n_negative"]
    assert sum(signs) == 747
    assert signs[0] > signs[1] > 0
    assert values["hessian-spectrum/gap"] == one.total.gap
    assert 10 ** values["hessian-spectrum/log10_tolerance"] == pytest.approx(one.total.tolerance)
    assert all(type(value) is float for value in values.values())
    assert {tag.split("/")[0] for tag in values} == {
        "hessian",
        *(f"hessian-{g}" for g in ["bound", "tolerance", "layers", "spectrum", "measures"]),
        *(f"hessian-{g}" for g in ["data", "time"]),
    }
    size = eigenvalues.abs()
    ratio = float(size.sum() ** 2 / (size**2).sum())
    assert values["hessian-measures/participation_ratio"] == pytest.approx(ratio)


def test_stochastic_counts_never_pose_as_exact() -> None:
    values = scalars(synthetic.measurement(stochastic=True))
    assert not any(tag.startswith("hessian/") for tag in values)
    assert values["hessian-estimate/rank"] == 95.4
    margin = 2.365 * 2.1  # t, 7 degrees of freedom
    assert values["hessian-estimate/rank_lower"] == pytest.approx(95.4 - margin)
    assert values["hessian-estimate/rank_upper"] == pytest.approx(95.4 + margin)
    assert values["hessian-tolerance/rank_1e-3"] == 95.4
    assert "hessian-tolerance/rank_machine" not in values


def test_estimates_of_layers_have_names_of_their_own() -> None:
    found = replace(
        synthetic.measurement(stochastic=True), layers={"head": LayerRank(4.5, 9, bound=6)}
    )
    values = scalars(found)
    assert values["hessian-layers/estimate/head"] == 4.5
    assert not any(tag.startswith("hessian-layers/rank") for tag in values)


def test_missing_pieces_have_no_name() -> None:
    values = scalars(Measurement(step=0, epoch=0, total=synthetic.sketch()), "fisher")
    assert set(values) == {
        "fisher/rank",
        "fisher/rank_over_parameters",
        "fisher-bound/parameters",
        *(
            f"fisher-tolerance/rank_{t}"
            for t in ["1e-1", "1e-2", "1e-3", "1e-4", "1e-5", "1e-6", "machine"]
        ),
        *(f"fisher-spectrum/{t}" for t in ("log10_tolerance", "gap")),
        *(f"fisher-time/{t}" for t in ("seconds", "products", "overhead", "skipped")),
    }


def test_a_failed_measurement_is_nan_where_a_rank_belongs() -> None:
    values = scalars(synthetic.failed())
    for tag in ("hessian/rank", "hessian/rank_over_bound", "hessian-tolerance/rank_machine"):
        assert math.isnan(values[tag])
    assert values["hessian-bound/rank"] == 765
    assert "hessian-tolerance/rank_1e-3" not in values


@pytest.mark.parametrize(("p", "rank"), [(3, 0), (3, 3), (1, 1)])
def test_extreme_ranks(p: int, rank: int) -> None:
    total = synthetic.dense(p, rank, noise=0.0)
    values = scalars(Measurement(step=0, epoch=0, total=total, bound=synthetic.bound(0, p)))
    assert values["hessian/rank"] == rank
    assert "hessian-spectrum/gap" not in values  # full: infinite; zero: none
    assert math.isnan(values["hessian/rank_over_bound"])  # of a bound of zero
    assert ("hessian-spectrum/log10_tolerance" in values) == (rank > 0)


def test_the_headline_tolerance_is_among_the_counts_and_machine_precision_stays() -> None:
    estimate = synthetic.dense()
    other = replace(estimate, rank=321, rtol=2.5e-4)
    assert counts_by_label(other)["2.5e-4"] == 321
    assert counts_by_label(other)["machine"] == 747  # from the eigenvalues
    assert "machine" not in counts_by_label(replace(synthetic.sketch(), rtol=1e-3))
    assert list(counts_by_label(estimate))[-1] == "machine"


@pytest.mark.parametrize(
    ("rtol", "label"), [(0.1, "1e-1"), (1e-6, "1e-6"), (0.025, "2.5e-2"), (1.5e-13, "1.5e-13")]
)
def test_tolerance_label(rtol: float, label: str) -> None:
    assert tolerance_label(rtol) == label
    assert float(label) == pytest.approx(rtol)


def test_a_layer_without_bound_has_no_ratio() -> None:
    found = replace(synthetic.measurement(), layers={"head": LayerRank(4, 9)})
    values = scalars(found)
    assert values["hessian-layers/rank/head"] == 4
    assert "hessian-layers/rank_over_bound/head" not in values
