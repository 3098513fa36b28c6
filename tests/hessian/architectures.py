"""Random small networks, losses and batches; the same ones for the same seed."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev

from tests.networks import Problem

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
POOLS = {
    1: (nn.AvgPool1d, nn.MaxPool1d),
    2: (nn.AvgPool2d, nn.MaxPool2d),
    3: (nn.AvgPool3d, nn.MaxPool3d),
}
ACTIVATIONS = (
    nn.ReLU,
    lambda: nn.ReLU(inplace=True),
    nn.Tanh,
    nn.GELU,
    nn.Softplus,
    nn.Identity,
)
KINDS = ("mlp", "conv1d", "conv2d", "conv3d", "sequence", "transformer")
OUTPUTS = 3
PARTS = ("total", "outer", "functional")


def hessian(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """``torch.func.hessian`` without its inner ``vmap``, which has ``layer_norm`` wrong (2.13)."""
    return jacrev(grad(function))


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Twice(nn.Module):
    """The same weights in two places."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(torch.tanh(self.inner(x)))


class Branches(nn.Module):
    """Two in parallel: their sum, or one after the other along the channels."""

    def __init__(self, first: nn.Module, second: nn.Module, dim: int | None) -> None:
        super().__init__()
        self.first, self.second, self.dim = first, second, dim

    def forward(self, x: Tensor) -> Tensor:
        y, z = self.first(x), self.second(x)
        return y * z if self.dim is None else torch.cat([y, z], self.dim)


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width, bias=b) for b in (0, 0, 1))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).mT / x.shape[-1] ** 0.5
        return scores.softmax(-1) @ self.value(x)


class Mean(nn.Module):
    """Over a sequence."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def squared_error(f: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(f, F.one_hot(y, OUTPUTS).to(f))


def absolute_error(f: Tensor, y: Tensor) -> Tensor:
    return F.l1_loss(f, F.one_hot(y, OUTPUTS).to(f))


def indefinite(f: Tensor, y: Tensor) -> Tensor:
    return (f[:, 0] * f[:, 1] + f[:, 2].sin() * (1 + y)).mean()


def logistic(f: Tensor, y: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(f, (y > 0).to(f))


LOSSES: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    F.cross_entropy,
    squared_error,
    absolute_error,
    indefinite,
    logistic,
)


class RandomProblem(Problem):
    """A network of some kind, with a loss and ragged batches."""

    def __init__(self, kind: str, seed: int) -> None:
        self.draw = random.Random(f"{kind} {seed}")
        with torch.random.fork_rng():
            torch.manual_seed(self.draw.getrandbits(32))
            shape = self.shape(kind)
            body = self.body(kind, shape)
            self.loss = LOSSES[(seed + KINDS.index(kind)) % len(LOSSES)]
            width = body(torch.zeros(2, *shape)).shape[1]
            one = self.loss is logistic
            head = [nn.Linear(width, 1), nn.Flatten(0)] if one else [nn.Linear(width, OUTPUTS)]
            self.net = nn.Sequential(body, *head).double().eval()
            for module in self.net.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.running_mean.normal_()
                    module.running_var.uniform_(0.5, 2)
            self.data = [
                (torch.randn(n, *shape, dtype=torch.float64), torch.randint(3, (n,)))
                for n in self.draw.choice([(3, 1), (4,), (2, 2, 3)])
            ]
        names = list(dict(self.net.named_parameters()))
        for name in self.draw.sample(names, self.draw.choice([0, 0, 1, 2])):
            if name != names[-1]:
                self.net.get_parameter(name).requires_grad_(False)
        self.parameters = {n: p for n, p in self.net.named_parameters() if p.requires_grad}
        self.evaluations = 0

    def oracle(self) -> dict[str, Tensor]:
        """The three parts by ``torch.func``, from their definitions, batch by batch."""
        sizes = [p.numel() for p in self.parameters.values()]
        flat = torch.cat([p.detach().flatten() for p in self.parameters.values()])
        total = sum(len(y) for _, y in self.data)
        parts = {part: flat.new_zeros(len(flat), len(flat)) for part in PARTS}
        for x, y in self.data:

            def network(theta: Tensor, x: Tensor = x) -> Tensor:
                shares = zip(self.parameters.items(), theta.split(sizes), strict=True)
                return functional_call(self.net, {n: v.view_as(p) for (n, p), v in shares}, (x,))

            def loss(f: Tensor, y: Tensor = y) -> Tensor:
                return self.loss(f, y)

            f, weight = network(flat).detach(), len(y) / total
            jacobian = jacrev(network)(flat).reshape(-1, len(flat))
            residual, curved = jacrev(loss)(f), hessian(loss)(f).reshape(f.numel(), -1)
            found = (
                hessian(lambda theta: loss(network(theta)))(flat),
                jacobian.T @ curved @ jacobian,
                hessian(lambda theta: (network(theta) * residual).sum())(flat),  # noqa: B023
            )
            for part, matrix in zip(PARTS, found, strict=True):
                parts[part] += weight * matrix
        return parts

    def layered(self) -> set[str]:
        """Names of the parameters of linear layers and of convolutions without groups."""
        layers = {
            name
            for name, module in self.net.named_modules()
            if isinstance(module, (nn.Linear, *CONVOLUTIONS.values()))
            and getattr(module, "groups", 1) == 1
        }
        return {n for n in self.parameters if n.rpartition(".")[0] in layers}

    def shape(self, kind: str) -> tuple[int, ...]:
        spatial = {"conv1d": (8,), "conv2d": (7, 7), "conv3d": (4, 4, 4)}
        return (2, *spatial[kind]) if kind in spatial else {"mlp": (5,)}.get(kind, (3, 4))

    def activation(self) -> nn.Module:
        return self.draw.choice(ACTIVATIONS)()

    def linear(self, a: int, b: int) -> nn.Module:
        return nn.Linear(a, b, bias=self.draw.random() < 0.7)

    def body(self, kind: str, shape: tuple[int, ...]) -> nn.Module:
        if kind == "mlp":
            return self.dense(shape[0])
        if kind in ("sequence", "transformer"):
            mixer = Attention if kind == "transformer" else (lambda width: self.linear(width, 4))
            first = Residual(nn.Sequential(nn.LayerNorm(4), mixer(4)))
            inner = [self.linear(4, 5), self.activation(), self.linear(5, 4)]
            last = self.draw.choice([Mean, nn.Flatten])()
            return nn.Sequential(first, Residual(nn.Sequential(*inner)), self.activation(), last)
        return self.convolutional(len(shape) - 1, shape[0])

    def dense(self, width: int) -> nn.Module:
        middle = {
            "plain": [self.linear(4, 4)],
            "residual": [Residual(nn.Sequential(self.activation(), self.linear(4, 4)))],
            "twice": [Twice(self.linear(4, 4))],
            "product": [Branches(self.linear(4, 3), self.linear(4, 3), None)],
            "concatenated": [Branches(self.linear(4, 2), self.linear(4, 3), 1)],
            "norm": [self.linear(4, 4), nn.LayerNorm(4)],
            "batch norm": [self.linear(4, 4), nn.BatchNorm1d(4)],
        }
        chosen = middle[self.draw.choice(list(middle))]
        return nn.Sequential(self.linear(width, 4), self.activation(), *chosen, self.activation())

    def convolution(self, dims: int, channels: int, *, same: bool) -> nn.Module:
        choose = self.draw.choice
        kernel = tuple(choose([1, 2, 3]) if dims < 3 else choose([1, 2]) for _ in range(dims))
        geometry = {
            "stride": 1 if same else tuple(choose([1, 1, 2]) for _ in range(dims)),
            "padding": "same" if same else tuple(choose([0, 1]) for _ in range(dims)),
            "dilation": choose([1, 1, 2]) if dims < 3 else 1,
            "groups": choose([1, 1, 1, channels]),
            "bias": choose([True, False]),
        }
        if same:
            kernel = tuple(k if k % 2 else 3 for k in kernel)
        return CONVOLUTIONS[dims](channels, channels, kernel, **geometry)

    def convolutional(self, dims: int, channels: int) -> nn.Module:
        first = self.convolution(dims, channels, same=False)
        same = [self.convolution(dims, channels, same=True) for _ in range(2)]
        middle = {
            "twice": [Twice(same[0])],
            "residual": [Residual(nn.Sequential(same[0], self.activation(), same[1]))],
            "product": [Branches(*same, None)],
            "concatenated": [Branches(*same, 1)],
            "group norm": [same[0], nn.GroupNorm(1, channels)],
            "batch norm": [same[0], BATCH_NORMS[dims](channels)],
            "pool": [self.draw.choice(POOLS[dims])(2)],
        }
        chosen = middle[self.draw.choice(list(middle))]
        return nn.Sequential(first, self.activation(), *chosen, self.activation(), nn.Flatten())


class Given(RandomProblem):
    """A network that is at hand, with one batch."""

    def __init__(
        self, net: nn.Module, x: Tensor, loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
    ) -> None:
        self.net = net.double()
        self.data = [(x.double() if x.is_floating_point() else x, torch.arange(len(x)) % 3)]
        self.loss = loss
        self.parameters = dict(self.net.named_parameters())
        self.evaluations = 0


def chain(*between: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), *between, nn.Linear(4, 3))
