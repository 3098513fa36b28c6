"""Ten networks as people train them, each with data that can be learnt and a training step.

Images are scikit-learn's digits, enlarged (nothing is downloaded); text is the source of a module
that ships with Python. Each entry builds a ``LightningModule`` and its training batches.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset


class Classifier(pl.LightningModule):
    """Cross-entropy over the second dimension of a network's output."""

    def __init__(self, net: nn.Module, lr: float = 1e-3) -> None:
        super().__init__()
        self.net, self.lr = net, lr

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs, targets = batch
        loss = F.cross_entropy(self.net(inputs), targets)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), self.lr)


class Regression(Classifier):
    """Squared error."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.mse_loss(self.net(batch[0]), batch[1])


def images(size: int, channels: int = 1, samples: int = 1500) -> TensorDataset:
    """Digits enlarged to ``size``, coloured at random where there are several channels."""
    data = load_digits()
    x = torch.tensor(data.images[:samples], dtype=torch.float32)[:, None] / 16
    x = F.interpolate(x, (size, size), mode="bilinear")
    g = torch.Generator().manual_seed(0)
    if channels > 1:  # dense: no dead pixels
        colour = 0.5 + torch.rand(len(x), channels, 1, 1, generator=g)
        x = x * colour + 0.1 * torch.randn(len(x), channels, size, size, generator=g)
    return TensorDataset(x, torch.tensor(data.target[:samples]))


def text(length: int, samples: int = 1500) -> tuple[TensorDataset, int]:
    """Characters of a module's source, the ones that follow them, and how many kinds."""
    characters = inspect.getsource(inspect)
    kinds = sorted(set(characters))
    code = torch.tensor([kinds.index(c) for c in characters])
    windows = code.unfold(0, length + 1, max(1, (len(code) - length - 1) // samples))[:samples]
    return TensorDataset(windows[:, :-1], windows[:, 1:]), len(kinds)


def lenet5() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5, padding=2), nn.Tanh(), nn.AvgPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten()),
        *(nn.Linear(400, 120), nn.Tanh(), nn.Linear(120, 84), nn.Tanh(), nn.Linear(84, 10)),
    )


def cifar_cnn() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(1024, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


def mlp(activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Module:
    hidden = [nn.Linear(784, 512), activation(), nn.Linear(512, 256), activation()]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(256, 10))


class BasicBlock(nn.Module):
    def __init__(self, c: int, m: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(c, m, 3, stride, 1, bias=False), nn.BatchNorm2d(m), nn.ReLU(inplace=True)),
            *(nn.Conv2d(m, m, 3, 1, 1, bias=False), nn.BatchNorm2d(m)),
        )
        self.skip = nn.Sequential()
        if stride > 1 or c != m:
            self.skip = nn.Sequential(nn.Conv2d(c, m, 1, stride, bias=False), nn.BatchNorm2d(m))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.skip(x))


def resnet18() -> nn.Module:
    """He et al.'s ResNet-18 with the stem for 32×32 images; p = 11,173,962."""
    blocks: list[nn.Module] = []
    c = 64
    for m in (64, 128, 256, 512):
        blocks += [BasicBlock(c, m, 1 if m == 64 else 2), BasicBlock(m, m, 1)]
        c = m
    stem = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10)]
    return nn.Sequential(*stem, *blocks, *head)


class ViT(nn.Module):
    """A small vision transformer: patches of 4, width 128, four blocks, learnt positions."""

    def __init__(self, width: int = 128, depth: int = 4) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, 4)
        self.place = nn.Parameter(0.02 * torch.randn(1, 65, width))
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        layer = nn.TransformerEncoderLayer(
            width, 4, 4 * width, 0.1, "gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.place
        return self.head(self.norm(self.blocks(x)[:, 0]))


class CharGPT(nn.Module):
    """A small causal transformer over characters; logits have their classes second."""

    def __init__(self, kinds: int, length: int, width: int = 128, depth: int = 4) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(kinds, width), nn.Embedding(length, width)
        layer = nn.TransformerEncoderLayer(
            width, 4, 4 * width, 0.1, "gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, kinds, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        hidden = self.embed(x) + self.place(torch.arange(length, device=x.device))
        hidden = self.blocks(hidden, mask=mask.to(hidden), is_causal=True)
        return self.head(self.norm(hidden)).transpose(1, 2)


class CharLSTM(nn.Module):
    def __init__(self, kinds: int, width: int = 128) -> None:
        super().__init__()
        self.embed = nn.Embedding(kinds, 64)
        self.lstm = nn.LSTM(64, width, 2, batch_first=True)
        self.head = nn.Linear(width, kinds)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(self.embed(x))[0]).transpose(1, 2)


class UNet(nn.Module):
    """Two levels down and up again, two classes for every pixel."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()

        def double(c: int, m: int) -> nn.Module:
            norm = [nn.Conv2d(c, m, 3, padding=1), nn.BatchNorm2d(m), nn.ReLU()]
            return nn.Sequential(*norm, nn.Conv2d(m, m, 3, padding=1), nn.BatchNorm2d(m), nn.ReLU())

        self.down = nn.ModuleList([double(1, width), double(width, 2 * width)])
        self.bottom = double(2 * width, 4 * width)
        self.up = nn.ModuleList(
            [
                nn.ConvTranspose2d(4 * width, 2 * width, 2, 2),
                nn.ConvTranspose2d(2 * width, width, 2, 2),
            ]
        )
        self.merge = nn.ModuleList([double(4 * width, 2 * width), double(2 * width, width)])
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.down[0](x)
        middle = self.down[1](F.max_pool2d(fine, 2))
        x = self.bottom(F.max_pool2d(middle, 2))
        x = self.merge[0](torch.cat([self.up[0](x), middle], 1))
        x = self.merge[1](torch.cat([self.up[1](x), fine], 1))
        return self.head(x)


def linear_mlp() -> nn.Module:
    widths = (784, 128, 96, 10)
    layers = [nn.Linear(c, m, bias=False) for c, m in itertools.pairwise(widths)]
    return nn.Sequential(nn.Flatten(), *layers)


def linear_cnn() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 5, 2, bias=False), nn.Conv2d(32, 64, 5, 2, bias=False)),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, 10, bias=False)),
    )


def segmented(size: int = 32) -> TensorDataset:
    """Digits enlarged, and where there is ink."""
    x, _ = images(size).tensors
    return TensorDataset(x, (x[:, 0] > 0.3).long())


def _vision(net: Callable[[], nn.Module], size: int, channels: int) -> Any:
    return lambda: (Classifier(net()), images(size, channels))


def _language(net: Callable[..., nn.Module], *more: int) -> Any:
    def build() -> tuple[pl.LightningModule, Dataset[Any]]:
        data, kinds = text(64)
        return Classifier(net(kinds, *more)), data

    return build


ORDINARY: dict[str, Callable[[], tuple[pl.LightningModule, Any]]] = {
    "LeNet-5": _vision(lenet5, 28, 1),
    "CIFAR CNN": _vision(cifar_cnn, 32, 3),
    "MLP": _vision(mlp, 28, 1),
    "ResNet-18": _vision(resnet18, 32, 3),
    "ViT": _vision(ViT, 32, 3),
    "char-GPT": _language(CharGPT, 64),
    "char-LSTM": _language(CharLSTM),
    "U-Net": lambda: (Classifier(UNet()), segmented()),
    "linear MLP": _vision(linear_mlp, 28, 1),
    "linear CNN": _vision(linear_cnn, 28, 1),
}


def ordinary(name: str, batch_size: int = 128) -> tuple[pl.LightningModule, DataLoader[Any]]:
    """Build one of the ten networks, at initial weights, with its loader."""
    torch.manual_seed(0)
    module, data = ORDINARY[name]()
    return module, DataLoader(data, batch_size, shuffle=True)
