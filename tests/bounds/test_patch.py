"""Values found independently before this package existed: networks, exact ranks and bounds."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from lightning_hessrank.api import rank_bound
from lightning_hessrank.bounds import sampling, slices
from lightning_hessrank.bounds.spans import GrowingSpan
from tests.architectures import Residual
from tests.slow import first


def linear_cnn(*channels: int, classes: int = 10) -> nn.Sequential:
    """Valid 3×3 convolutions on 8×8 images and a head, without biases."""
    layers: list[nn.Module] = []
    for c, m in zip((1, *channels), channels, strict=False):
        layers.append(nn.Conv2d(c, m, 3, bias=False))
    size = 8 - 2 * len(channels)
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(channels[-1] * size**2, classes, bias=False)
    )


def chain_1d(
    length: int, channels: tuple[int, ...], kernels: tuple[int, ...], outputs: int
) -> nn.Sequential:
    layers: list[nn.Module] = []
    for c, m, k in zip((1, *channels), channels, kernels, strict=False):
        layers.append(nn.Conv1d(c, m, k, bias=False))
        length -= k - 1
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(channels[-1] * length, outputs, bias=False)
    )


TABLE = {
    "1-D, channels 6-6": (chain_1d(12, (6, 6), (3, 3), 2), (1, 12), 222, 95, 96),
    "1-D, channels 8-8-8": (chain_1d(10, (8, 8, 8), (3, 2, 3), 3), (1, 10), 464, 206, 208),
    "2-D, padded": (
        nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1, bias=False),
            nn.Conv2d(6, 6, 3, padding=1, bias=False),
            nn.Flatten(),
            nn.Linear(150, 3, bias=False),
        ),
        (1, 5, 5),
        828,
        672,
        672,
    ),
    "pooling, pooled head": (
        nn.Sequential(
            nn.Conv2d(1, 6, 3, bias=False),
            nn.AvgPool2d(2),
            nn.Conv2d(6, 8, 3, bias=False),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 3, bias=False),
        ),
        (1, 8, 8),
        510,
        155,
        156,
    ),
}


@pytest.mark.parametrize("name", first(1, TABLE))
def test_functional_ranks_of_convolutional_networks(name: str) -> None:
    model, shape, parameters, exact, bound = TABLE[name]
    generic = rank_bound(model, torch.zeros(1, *shape), kind="generic")
    patch = rank_bound(model, torch.zeros(1, *shape), kind="patch")
    assert generic.num_parameters == parameters
    assert generic.functional == exact
    assert exact <= patch.functional <= bound


@pytest.mark.slow
def test_a_residual_block() -> None:
    body = Residual(nn.Conv2d(10, 10, 3, padding=1, bias=False))
    model = nn.Sequential(
        nn.Conv2d(1, 10, 3, padding=1, bias=False),
        body,
        nn.Conv2d(10, 10, 3, padding=1, bias=False),
        nn.Flatten(),
        nn.Linear(250, 2, bias=False),
    )
    bound = rank_bound(model, torch.zeros(1, 1, 5, 5), kind="patch")
    assert bound.num_parameters == 2390
    assert 2069 <= bound.functional <= 2070


def test_pooling_hides_input_directions_from_the_outer_product() -> None:
    model, shape, *_ = TABLE["pooling, pooled head"]
    bound = rank_bound(model, torch.zeros(1, *shape))
    assert bound.outer == 3 * 49  # not 3 * 64


def digits(count: int) -> Tensor:
    images = torch.as_tensor(load_digits().images[:count], dtype=torch.float64)
    return images[:, None] / 16


@pytest.mark.slow
@pytest.mark.parametrize(("channels", "total"), [((4, 6), 892), ((4, 6, 8), 941)])
def test_a_linear_cnn_on_handwritten_digits(channels: tuple[int, ...], total: int) -> None:
    x = digits(600)
    bound = rank_bound(linear_cnn(*channels), x[:1], loss="cross_entropy", data=x)
    assert (bound.kind, bound.total, bound.outer) == ("generic", total, 9 * 58)
    assert (bound.input_rank, bound.num_samples, bound.outputs) == (58, 600, 9)


def test_the_table_can_be_read() -> None:
    bound = rank_bound(nn.Linear(3, 2, bias=False), torch.zeros(1, 3), loss="cross_entropy")
    assert str(bound).splitlines() == [
        "Rank bound of the loss Hessian (closed-form, theorem)",
        "for inputs of rank 3, any number of samples, 1 effective outputs per sample",
        "",
        "layer   parameters  functional",
        "------------------------------",
        "weight           6           0",
        "------------------------------",
        "outer-product            3",
        "functional               0",
        "total                    3  outer-product + functional",
        "parameters               6",
        "",
        "The network is linear in its input and in every layer, so the bound holds for it.",
    ]


def test_what_no_sampling_can_pay_for_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand outputs would be a thousand samples: with no budget, only two probes run."""
    seen: list[int] = []

    class Watched(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(len(x))
            return super().forward(x)

    for module in (slices, sampling):
        monkeypatch.setattr(module, "BUDGET", 0)
    net = Watched(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 1000))
    bound = rank_bound(net, torch.zeros(2, 1, 8, 8))
    assert bound.is_theorem
    assert bound.total <= bound.num_parameters
    assert max(seen) == 2


def test_a_span_that_is_not_looked_into_takes_no_memory() -> None:
    span = GrowingSpan(1, 10**12, 10**9, 10**12, torch.Generator())
    assert span.complete
    assert span.ranks == [10**9]
