"""A copy computes what training computes: weights that the step moves, modes, precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_hessrank import hessian_rank
from lightning_hessrank.network.batches import fingerprint, num_bytes
from lightning_hessrank.subject.comparison import (
    EvaluationModeError,
    differ,
    losses_in_both_modes,
)
from lightning_hessrank.subject.isolated import IsolatedModule
from lightning_hessrank.subject.step import module_step
from lightning_hessrank.subject.subject import Subject

# -- weights that the step itself moves --------------------------------------------------------


class Moves(nn.Module):
    """A table of vectors that the forward pass moves in place before it uses them."""

    def __init__(self, move: Callable[[nn.Embedding], object], **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head = nn.Embedding(4, 3, **options), nn.Linear(3, 2)
        self.move = move

    def forward(self, x: Tensor) -> Tensor:
        self.move(self.table)
        return self.head(self.table(x)).tanh()


def normalise(table: nn.Embedding) -> None:
    with torch.no_grad():
        table.weight.copy_(F.normalize(table.weight, dim=1))


def normalise_data(table: nn.Embedding) -> None:
    table.weight.data = F.normalize(table.weight.data, dim=1)


def normalise_rows(table: nn.Embedding) -> None:
    rows = table.weight.detach()
    for i in range(len(rows)):
        rows[i] /= rows[i].norm()


def normalise_out(table: nn.Embedding) -> None:
    with torch.no_grad():
        torch.div(table.weight, table.weight.norm(dim=1, keepdim=True), out=table.weight)


def clip(table: nn.Embedding) -> None:
    table.weight.data.clamp_(-0.5, 0.5)


def shrink(table: nn.Embedding) -> None:
    with torch.no_grad():
        table.weight[:2] *= 0.5


MOVES: dict[str, Any] = {
    "normalised": (normalise, {}),
    "normalised, its data": (normalise_data, {}),
    "normalised row by row": (normalise_rows, {}),
    "normalised with out=": (normalise_out, {}),
    "clipped": (clip, {}),
    "a part halved": (shrink, {}),
    "max_norm": (lambda table: None, {"max_norm": 0.7}),
}


@pytest.mark.parametrize(("move", "options"), MOVES.values(), ids=MOVES.keys())
def test_the_hessian_is_that_at_the_weights_which_the_step_has_moved(
    move: Any, options: dict[str, Any]
) -> None:
    x, y = torch.tensor([0, 1, 1, 3]), torch.randn(4, 2, generator=torch.Generator().manual_seed(1))
    net = Moves(move, **options)
    before = fingerprint(list(net.parameters()))
    found = hessian_rank(net, F.mse_loss, (x, y), method="dense")
    assert fingerprint(list(net.parameters())) == before
    there = Moves(move, **options).double()
    there(x)  # moves them, once
    there.move, there.table.max_norm = (lambda table: None), None
    names, values = zip(*there.named_parameters(), strict=True)

    def loss(flat: Tensor) -> Tensor:
        pieces = flat.split([v.numel() for v in values])
        at = {n: p.view_as(v) for n, p, v in zip(names, pieces, values, strict=True)}
        return F.mse_loss(torch.func.functional_call(there, at, (x,)), y.double())

    flat = torch.cat([v.detach().flatten() for v in values])
    exact = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, flat))  # type: ignore[arg-type]
    assert found.eigenvalues is not None
    assert (found.eigenvalues - exact).abs().max() <= 1e-12 * exact.abs().max()


# -- evaluation mode and training mode ---------------------------------------------------------


class Net(nn.Module):
    """Two linear layers, with a layer between, and a head that a row may replace."""

    def __init__(self, between: nn.Module, head: Callable[[Net, Tensor], Tensor] | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.between, self.last = nn.Linear(4, 6), between, nn.Linear(6, 2)
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        out = self.last(self.between(self.first(x)))
        return out if self.head is None else self.head(self, out)


class DropPath(nn.Module):
    """As timm has it."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.bernoulli(torch.full((len(x), 1), 0.5)) if self.training else x


class Call(nn.Module):
    def __init__(self, function: Callable[[Call, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def attention(module: Call, x: Tensor) -> Tensor:
    q = x.view(1, 1, -1, 6)
    p = 0.5 if module.training else 0.0
    return F.scaled_dot_product_attention(q, q, q, dropout_p=p).view(-1, 6)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(6, 6, num_layers=2, dropout=0.5)
        self.attention = nn.MultiheadAttention(6, 2, dropout=0.5)

    def forward(self, x: Tensor) -> Tensor:
        out = self.rnn(x.unsqueeze(0))[0]
        return self.attention(out, out, out, need_weights=False)[0][0]


SAME: dict[str, Callable[[], nn.Module]] = {
    "nothing": nn.Identity,
    "dropout": lambda: nn.Dropout(0.5),
    "alpha dropout": lambda: nn.AlphaDropout(0.5),
    "dropout function": lambda: Call(lambda m, x: F.dropout(x, 0.5, m.training)),
    "dropout function by name": lambda: Call(lambda m, x: F.dropout(x, training=m.training)),
    "batch norm": lambda: nn.BatchNorm1d(6),
    "batch norm function": lambda: Call(
        lambda m, x: F.batch_norm(x, torch.zeros(6), torch.ones(6), training=m.training)
    ),
    "batch norm without statistics": lambda: nn.BatchNorm1d(6, track_running_stats=False),
    "drop path": DropPath,
    "rrelu": nn.RReLU,
    "attention function": lambda: Call(attention),
    "recurrent and attention": Recurrent,
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6)),
    "scripted": lambda: torch.jit.script(nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5))),
}
OTHER: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "un-scaled": lambda net, out: out if net.training else out * 50 + 100,
    "softmax": lambda net, out: out if net.training else out.softmax(1),
    "sampled": lambda net, out: out + torch.randn_like(out) if net.training else out,
    "auxiliary": lambda net, out: 2 * out if net.training else out,
}


def subject_of(net: nn.Module) -> Subject:
    batches = [(torch.randn(n, 4), torch.randn(n, 2)) for n in (5, 3)]
    step = module_step(net, lambda module, batch: F.mse_loss(module(batch[0]), batch[1]))
    return Subject(net, batches, step, training=False)


@pytest.mark.parametrize("between", SAME.values(), ids=SAME.keys())
def test_dropout_and_batch_norm_explain_a_difference(between: Callable[[], nn.Module]) -> None:
    subject = subject_of(Net(between(), None))
    assert not differ(*losses_in_both_modes(subject))
    assert not any(part.training for part in subject.shadow.modules())


@pytest.mark.parametrize("head", OTHER.values(), ids=OTHER.keys())
def test_another_function_in_evaluation_mode_is_noticed(head: Any) -> None:
    subject = subject_of(Net(nn.Dropout(0.5), head))
    measured, trained = losses_in_both_modes(subject)
    assert differ(measured, trained)
    sizes = torch.tensor([5.0, 3.0], dtype=torch.float64)
    losses = torch.stack([subject.evaluate(batch).loss.detach() for batch in subject.batches])
    assert measured == pytest.approx(float((sizes * losses).sum() / 8), rel=1e-12)


def test_a_step_that_fails_in_evaluation_mode_names_the_mode() -> None:
    def boxes(net: Net, out: Tensor) -> Any:
        return out if net.training else [{"boxes": out}]

    expected = (
        r"the step runs in training mode, but not in evaluation mode, in which it is measured "
        r"\(AttributeError: 'list' object has no attribute 'size'\); pass module_mode='train' to "
        "the monitor"
    )
    with pytest.raises(EvaluationModeError, match=expected):
        losses_in_both_modes(subject_of(Net(nn.Dropout(0.5), boxes)))


def test_a_step_that_fails_in_both_modes_keeps_its_error() -> None:
    with pytest.raises(ZeroDivisionError):
        losses_in_both_modes(subject_of(Net(nn.Identity(), lambda net, out: out / (1 // 0))))


class OwnEvaluation(pl.LightningModule):
    """Says itself what evaluation mode is: all but the sampler."""

    def __init__(self, through_trainer: bool) -> None:
        super().__init__()
        self.net, self.sampler = nn.Linear(2, 1), nn.Dropout(0.5)
        self.through_trainer = through_trainer

    def on_validation_model_eval(self) -> None:
        if self.through_trainer:
            super().on_validation_model_eval()
        else:
            self.net.eval()
        self.sampler.train()


@pytest.mark.parametrize("through_trainer", [True, False])
def test_the_module_says_what_evaluation_mode_is(through_trainer: bool) -> None:
    live = OwnEvaluation(through_trainer)
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(live)
    live.trainer = trainer
    copy = IsolatedModule(live, training=False, trainer=trainer)
    shadow: Any = copy.shadow
    assert [shadow.training, shadow.net.training, shadow.sampler.training] == [
        not through_trainer,
        False,
        True,
    ]
    assert all(part.training for part in live.modules())
    assert shadow.trainer.model is shadow.trainer.strategy.lightning_module is shadow


# -- figures -----------------------------------------------------------------------------------


@pytest.fixture
def pyplot() -> Iterator[Any]:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    yield plt
    plt.close("all")


def test_figures_of_a_step_are_closed_and_those_of_the_user_left_alone(pyplot: Any) -> None:
    own = pyplot.figure(7)

    def draws(module: nn.Module) -> list[int]:
        pyplot.plot([1, 2])  # on the current figure
        pyplot.subplots()
        pyplot.figure(7)
        numbers = pyplot.get_fignums()
        if module.weight.numel():
            pyplot.close("all")
        return numbers

    for _ in range(2):
        assert IsolatedModule(nn.Linear(1, 1)).run(draws) == [1, 2, 7]
    assert pyplot.get_fignums() == [7]
    assert pyplot.gcf() is own
    assert own.axes == []


# -- precision ---------------------------------------------------------------------------------

COMPLEX: dict[str, Callable[[Tensor], Tensor]] = {
    "buffer": lambda z: torch.zeros(z.shape, dtype=torch.cfloat).index_add(0, torch.arange(3), z),
    "filled": lambda z: torch.zeros(z.shape, dtype=torch.complex64).add_(z),
    "cast": lambda z: z.to(torch.complex64),
    "type": lambda z: z.type(torch.cfloat),
    "method": lambda z: z.cfloat() if hasattr(z, "cfloat") else z.to(torch.cfloat),
    "constant": lambda z: z * torch.tensor([1 + 1j, 2, 3], dtype=torch.cfloat),
    "outside": lambda z: z * OUTSIDE,
    "polar": lambda z: torch.polar(z.abs().float(), z.angle().float()),
}
OUTSIDE = torch.tensor([1 + 1j, 2, 3], dtype=torch.cfloat)


@pytest.mark.parametrize("function", COMPLEX.values(), ids=COMPLEX.keys())
def test_complex_tensors_made_in_the_step_are_complex128(function: Callable[..., Tensor]) -> None:
    copy = IsolatedModule(nn.Linear(3, 3))
    z = torch.tensor([1 / 3 + 1j, 1 / 7, 1j / 9], dtype=torch.complex128)
    found = copy.run(lambda module: function(z))
    assert found.dtype == torch.complex128
    factor = (
        OUTSIDE.to(torch.complex128) if function in (COMPLEX["constant"], COMPLEX["outside"]) else 1
    )
    assert (found - z * factor).abs().max() <= 1e-15


# -- sparse tensors ----------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_sparse_tensors_are_told_apart_as_they_are_stored() -> None:
    dense = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    layouts = [dense, dense.to_sparse(), dense.to_sparse_csr(), dense.to_sparse_csc()]
    assert len({fingerprint(x) for x in layouts}) == 4
    for change in (2 * dense, dense.flip(0)):
        assert fingerprint(change.to_sparse()) != fingerprint(dense.to_sparse())
    assert fingerprint(dense.clone().to_sparse()) == fingerprint(dense.to_sparse())


def test_sparse_tensors_are_as_large_as_what_is_stored() -> None:
    size = 10_000_000
    large = torch.sparse_coo_tensor(
        [[0, 9], [0, 9]], [1.0, 1.0], (size, size), check_invariants=True
    )
    assert num_bytes(large) == 2 * 2 * 8 + 2 * 4
    assert len(fingerprint(large)) == 64
