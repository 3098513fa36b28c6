"""Small nonlinear networks that several tests of the bounds share."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Unit = Callable[[Tensor], Tensor]


def leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.3)


class Attention(nn.Module):
    """Two heads, with fewer key–value heads or rotary positions where asked for."""

    def __init__(
        self,
        groups: int = 2,
        *,
        rotary: bool = False,
        bias: bool = True,
        act: Unit = torch.tanh,
    ) -> None:
        super().__init__()
        self.groups, self.rotary, self.act = groups, rotary, act
        sizes = {"q": (4, 4), "k": (4, 2 * groups), "v": (4, 2 * groups), "o": (4, 5)}
        for name, (a, b) in sizes.items():
            setattr(self, name, nn.Linear(a, b, bias=bias))
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        def split(z: Tensor) -> Tensor:
            heads = z.unflatten(2, (-1, 2)).transpose(1, 2)
            return heads.repeat_interleave(2 // heads.shape[1], 1)

        q, k, v = split(self.q(x)), split(self.k(x)), split(self.v(x))
        if self.rotary:
            angle = torch.arange(x.shape[1])[:, None]
            turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1)
            turn = turn.reshape(-1, 2, 2)
            q, k = (torch.einsum("tab,nhtb->nhta", turn, z) for z in (q, k))
        weights = (q @ k.transpose(2, 3)).softmax(3)
        return self.head(self.act(self.o((weights @ v).transpose(1, 2).flatten(2)))).mean(1)


class Gated(nn.Module):
    def __init__(self, width: int = 5, *, act: Unit = F.silu) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(6, width, bias=False), nn.Linear(6, width, bias=False)
        self.down = nn.Linear(width, 3, bias=False)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.gate(x)) * self.up(x))


class Residual(nn.Module):
    def __init__(self, width: int = 5, *, act: Unit = leaky) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(6, 4, bias=False), nn.Linear(4, 3, bias=False)
        self.one, self.two = nn.Linear(4, width, bias=False), nn.Linear(width, 4, bias=False)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        z = self.act(self.inp(x))
        return self.out(z + self.act(self.two(self.act(self.one(z)))))
