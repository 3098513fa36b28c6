"""Small networks and losses, as functions of their parameters in two forms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacrev

from lightning_hessrank.hessian import Evaluation, LossFunction, LossTerm


class Tied(nn.Module):
    """An autoencoder whose decoder is the encoder's transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 6) / 2)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(x @ self.weight.T) @ self.weight)


def batch_norm() -> nn.Module:
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3, stride=2, padding=1),
        nn.BatchNorm2d(3),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(27, 3),
    )
    net[1].running_mean.normal_()
    net[1].running_var.uniform_(0.5, 2)
    return net.eval()


def frozen() -> nn.Module:
    net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    net[2].weight.requires_grad_(False)
    return net


@dataclass(frozen=True)
class Case:
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy


CASES = {
    "mlp": Case(lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), (6,)),
    "mse": Case(
        lambda: nn.Sequential(nn.Linear(6, 5, bias=False), nn.Tanh(), nn.Linear(5, 3)),
        (6,),
        lambda f, y: F.mse_loss(f, F.one_hot(y, 3).to(f)),
    ),
    "cnn": Case(
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(3, 2, 2),
            nn.Flatten(),
            nn.Linear(32, 3),
        ),
        (1, 5, 5),
    ),
    "linear": Case(lambda: nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3)), (6,)),
    "batch norm": Case(batch_norm, (1, 5, 5)),
    "tied": Case(Tied, (6,)),
    "frozen": Case(frozen, (6,)),
}


class Problem:
    """A case with weights and data, in ragged batches."""

    def __init__(self, name: str, sizes: tuple[int, ...] = (5, 2, 4), seed: int = 0) -> None:
        case = CASES[name]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.net = case.build().double()
            self.data = [
                (torch.randn(n, *case.shape, dtype=torch.float64), torch.randint(3, (n,)))
                for n in sizes
            ]
        self.loss = case.loss
        self.parameters = {n: p for n, p in self.net.named_parameters() if p.requires_grad}
        self.evaluations = 0

    def function(self) -> LossFunction:
        total = sum(len(y) for _, y in self.data)
        return LossFunction(
            self.parameters,
            [LossTerm(len(y) / total, lambda x=x, y=y: self._evaluate(x, y)) for x, y in self.data],
        )

    def _evaluate(self, x: Tensor, y: Tensor) -> Evaluation:
        self.evaluations += 1
        output = self.net(x)
        return Evaluation(self.loss(output, y), (output,))

    def oracle(self) -> dict[str, Tensor]:
        """The three parts by ``torch.func``, from their definitions, in one batch."""
        x = torch.cat([x for x, _ in self.data])
        y = torch.cat([y for _, y in self.data])
        shapes = [p.shape for p in self.parameters.values()]
        sizes = [p.numel() for p in self.parameters.values()]
        flat = torch.cat([p.detach().flatten() for p in self.parameters.values()])

        def network(theta: Tensor) -> Tensor:
            pieces = [v.view(s) for v, s in zip(theta.split(sizes), shapes, strict=True)]
            return functional_call(self.net, dict(zip(self.parameters, pieces, strict=True)), (x,))

        total = hessian(lambda theta: self.loss(network(theta), y))(flat)
        jacobian = jacrev(network)(flat).flatten(0, 1)
        output = network(flat)
        curved = hessian(lambda f: self.loss(f, y))(output.detach())
        curved = curved.reshape(output.numel(), output.numel())
        outer = jacobian.T @ curved @ jacobian
        residual = jacrev(lambda f: self.loss(f, y))(output.detach())
        functional = hessian(lambda theta: (network(theta) * residual).sum())(flat)
        return {"total": total, "outer": outer, "functional": functional}
