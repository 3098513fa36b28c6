"""The numbers of ``examples/README.md``: measured, by plain autograd, and in whole numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from tests.oracles import closed_form
from tests.paper.oracles import autograd_eigenvalues, autograd_rank, integer_rank

Script = Callable[[str], ModuleType]


def check(common: ModuleType, setting: Any, *, whole: bool = True) -> Any:
    """Measure a setting; both oracles must say the same, and the cut must be clear."""
    case = common.measure(setting)
    assert case.gap > common.CLEAR_GAP
    assert autograd_rank(setting, common.LOSSES[setting.loss].function) == case.rank
    if whole:
        assert integer_rank(setting) == case.rank
    return case


def totals(script: Script, settings: Sequence[Any], **options: Any) -> list[tuple[int, int, int]]:
    """(parameters, rank, bound) of settings, after :func:`check`."""
    common = script("common")
    cases = [check(common, setting, **options) for setting in settings]
    return [(case.parameters, case.rank, case.bound.total) for case in cases]


def test_filter_sizes(script: Script) -> None:
    settings = script("filter_size").one_dimensional()
    ranks = (31, 39, 47, 63, 76, 68, 36)
    parameters = (100, 96, 92, 84, 76, 68, 56)
    assert [s.name for s in settings] == [1, 2, 3, 5, 7, 9, 12]
    assert totals(script, settings) == list(zip(parameters, ranks, ranks, strict=True))


def test_filter_sizes_on_digits(script: Script) -> None:
    settings = script("filter_size").on_digits((7, 8))
    assert totals(script, settings, whole=False) == [(356, 340, 340), (296, 256, 256)]


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        (1, [(36, 31), (96, 55), (216, 55)]),
        (2, [(60, 39), (120, 108), (240, 108)]),
        (3, [(84, 47), (144, 144), (264, 159)]),
    ],
)
def test_weight_sharing(script: Script, outputs: int, expected: list[tuple[int, int]]) -> None:
    settings = script("sharing").connections(outputs)
    assert [s.name for s in settings] == ["CNN", "LCN", "FCN"]
    assert totals(script, settings) == [(p, rank, rank) for p, rank in expected]


def test_local_connections_are_a_convolution_where_weights_agree(script: Script) -> None:
    sharing = script("sharing")
    layers = sharing.first_layers()
    shared = layers["CNN"].weight  # (channels, 1, taps)
    layers["LCN"].weight.data = shared.detach().expand(-1, sharing.POSITIONS, -1).clone()
    x = torch.randn(5, 1, sharing.SIZE)
    torch.testing.assert_close(layers["LCN"](x), layers["CNN"](x))


def test_strides(script: Script) -> None:
    expected = [(172, 79, 79), (100, 76, 76), (76, 71, 71), (64, 64, 64)]
    assert totals(script, script("stride").one_dimensional()) == expected
    assert totals(script, script("stride").on_digits((3,)), whole=False) == [(258, 252, 252)]


def test_pooling(script: Script) -> None:
    pooling = script("pooling")
    average = pooling.pooled(nn.AvgPool2d, (3, 6))
    assert totals(script, average, whole=False) == [(294, 270, 270), (114, 108, 108)]
    case = check(script("common"), pooling.pooled(nn.MaxPool2d, (6,))[0], whole=False)
    assert not case.bound.is_theorem
    assert (case.outer, case.bound.outer) == (102, 72)


def test_maximum_pooling_exceeds_its_reference_line(script: Script) -> None:
    (setting,) = script("pooling").pooled(nn.MaxPool2d, (2,))
    case = script("common").measure(setting, parts=False)
    assert (case.rank, case.bound.total, case.bound.is_theorem) == (540, 533, False)


def test_depths(script: Script) -> None:
    expected = [(210, 155, 155), (310, 230, 230), (410, 305, 305)]
    assert totals(script, script("depth").fully_connected((1, 2, 3)), whole=False) == expected
    assert integer_rank(script("depth").fully_connected((2,))[0]) == 230
    for depth in range(1, 9):  # each further layer adds 75 to the rank, 100 to p
        assert closed_form([16, *[10] * depth, 5], 16, 5)[2] == 80 + 75 * depth


def test_widths(script: Script) -> None:
    width = script("width")
    assert totals(script, width.all_layers((2, 6))) == [(56, 56, 56), (216, 216, 216)]
    assert totals(script, width.middle_layer((1, 2)), whole=False) == [
        (416, 86, 86),
        (448, 168, 168),
    ]
    for m, rank in ((12, 512), (16, 704), (20, 896), (24, 1088), (28, 1280)):
        assert closed_form([16, m, m, m, 8], 16, 8)[2] == rank
    for m, rank in ((3, 246), (4, 320), (6, 456), (8, 576), (10, 608), (16, 704)):
        assert closed_form([16, 16, m, 16, 8], 16, 8)[2] == rank


def test_nine_widths_are_those_that_the_authors_found(script: Script) -> None:
    nine = script("nine_widths")
    images, _ = script("common").digits(41)
    assert int(torch.linalg.matrix_rank(images.flatten(1))) == 41
    for width, published in nine.PUBLISHED.items():
        assert closed_form([64, width, width, 10], 41, 9) == published
    digits, dense = script("common").digits(41), nine.dense()
    for setting in (*nine.nine(digits, (4, 8, 12)), *nine.nine(dense, (4, 8))):
        case = script("common").measure(setting)
        assert (case.outer, case.functional, case.rank) == nine.PUBLISHED[setting.name]
        assert case.gap > script("common").CLEAR_GAP
    assert autograd_rank(nine.nine(digits, (4,))[0], nn.functional.cross_entropy) == 216


def test_numbers_of_samples(script: Script) -> None:
    samples, common = script("samples"), script("common")
    digits = samples.samples(common.digits(150), "cross-entropy")
    ranks = [int(torch.linalg.matrix_rank(s.inputs.flatten(1))) for s in digits]
    expected = [closed_form([64, 10, 10, 10], r, 9)[2] for r in ranks]
    assert expected[-5:] == [648, 657, 666, 675, 675]
    for i in (0, 4, 10):
        case = common.measure(digits[i])
        assert (case.rank, case.bound.total) == (expected[i], expected[i])
        assert case.gap > common.CLEAR_GAP
    few = samples.samples(common.gaussian(150, (64,), 10), "MSE", (1, 10))
    assert [common.measure(s).rank for s in few] == [48, 300]


def test_biases(script: Script) -> None:
    bias = script("bias")
    assert totals(script, bias.fully_connected(True, (1, 2))) == [(225, 165, 165), (335, 245, 245)]
    assert totals(script, bias.on_digits(False, (2, 4)), whole=False) == [
        (74, 72, 72),
        (220, 216, 216),
    ]
    assert totals(script, bias.on_digits(True, (2, 4)), whole=False) == [
        (88, 85, 85),
        (238, 233, 233),
    ]


def test_losses_differ_by_the_outputs_that_they_see(script: Script) -> None:
    losses, common = script("losses"), script("common")
    model = common.drawn(losses.convolutional)
    cases = {s.loss: common.measure(s) for s in losses.losses(model)}
    assert {loss: case.rank for loss, case in cases.items()} == {
        "MSE": 600,
        "cross-entropy": 592,
        "cosh": 600,
    }
    assert all(case.rank == case.bound.total for case in cases.values())
    for loss, outputs, rank in (("MSE", 10, 850), ("cross-entropy", 9, 774), ("cosh", 10, 850)):
        assert closed_form([64, 20, 10], 55, outputs)[2] == rank
        small = losses.losses(common.drawn(lambda: common.chain([64, 4, 10])))
        (setting,) = (s for s in small if s.loss == loss)
        check(common, setting, whole=False)


@pytest.mark.parametrize(
    ("name", "rank", "beyond"), [("linear", 220, 173), ("ReLU", 209, 145), ("tanh", 220, 177)]
)
def test_activations(script: Script, name: str, rank: int, beyond: int) -> None:
    (setting,) = script("activations").cnns(name, (4,))
    case = script("common").measure(setting, parts=False)
    size = autograd_eigenvalues(setting, nn.functional.mse_loss)
    assert (case.rank, case.estimate.rank_at(1e-4)) == (rank, beyond)
    assert case.bound.is_theorem == (name == "linear")
    for tolerance in (1e-1, 1e-2, 1e-3, 1e-4, 1e-6, 1e-8, 1e-10):
        assert case.estimate.rank_at(tolerance) == int((size > tolerance).sum())


def test_the_bound_holds_for_tanh_at_a_coarse_tolerance_only(script: Script) -> None:
    activations, common = script("activations"), script("common")
    (setting,) = activations.cnns("tanh", (8,))
    case = common.measure(setting, parts=False)
    assert (case.rank, case.bound.total, case.estimate.rank_at(1e-4)) == (728, 600, 374)
    end = activations.crossing(case)
    assert case.estimate.rank_at(end) > 600 >= case.estimate.rank_at(end * 10**0.25)
    (linear,) = activations.cnns("linear", (4,))
    assert activations.crossing(common.measure(linear, parts=False)) is None


def test_training_by_cross_entropy_leaves_it_there_too(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = script("training")
    monkeypatch.setattr(training, "LOSS", "cross-entropy")
    for moment in training.follow("linear", (0, 30)):
        assert (moment.case.rank, moment.case.bound.total) == (702, 702)
        assert moment.case.gap > script("common").CLEAR_GAP


def test_training_leaves_the_rank_of_a_linear_network_at_its_bound(script: Script) -> None:
    training = script("training")
    first, last = training.follow("linear", (0, 10))
    for moment in (first, last):
        case = moment.case
        assert (case.outer, case.functional, case.rank, case.bound.total) == (550, 320, 770, 770)
        assert case.gap > script("common").CLEAR_GAP
    assert (first.loss, last.loss) == pytest.approx((2.4488, 0.6641), abs=2e-4)
    assert last.case.estimate.rank_at(1e-2) < first.case.estimate.rank_at(1e-2)
    assert training.train("tanh", (0, 1))[1].model is not training.train("tanh", (0,))[0].model
