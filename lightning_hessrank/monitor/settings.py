"""What a monitor was asked to do, checked at construction."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any, Literal

from torch.utils.data import Dataset

from lightning_hessrank.estimators import method_names
from lightning_hessrank.results import Method
from lightning_hessrank.subject.step import LossFn
from lightning_hessrank.tolerance import check_rtol

_CHOICES = {
    "module_mode": ("eval", "train"),
    "on_error": ("warn", "raise"),
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Arguments of :class:`lightning_hessrank.HessianRankMonitor`, which documents them.

    Raises:
        ValueError: an argument is out of range.
        TypeError: an argument has the wrong type.
    """

    every_n_epochs: int | None = None
    every_n_steps: int | None = None
    method: Method = "auto"
    rtol: float | None = None
    data: Any = None
    max_samples: int | None = 512
    batch_size: int | None = None
    loss_fn: LossFn | None = None
    module_mode: Literal["eval", "train"] = "eval"
    layers: bool | Literal["fine"] = False
    max_seconds: float | None = 60.0
    max_overhead: float | None = None
    on_error: Literal["warn", "raise"] = "warn"
    progress_bar: bool = True
    prog_bar: bool = False
    name: str = "hessian"
    save_eigenvalues: str | PathLike[str] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("every_n_epochs", "every_n_steps", "max_samples", "batch_size"):
            _check_positive(name, getattr(self, name))
        for name, choices in {"method": method_names(), **_CHOICES}.items():
            value = getattr(self, name)
            if value not in choices:
                listed = ", ".join(map(repr, choices))
                raise ValueError(f"{name} must be one of {listed}, got {value!r}")
        if self.rtol is not None:
            check_rtol(self.rtol)
        _check_data(self.data)
        if self.loss_fn is not None and not callable(self.loss_fn):
            raise TypeError(
                f"loss_fn must be a function loss_fn(module, batch) -> scalar, got {self.loss_fn!r}"
            )
        if not isinstance(self.layers, bool) and self.layers != "fine":
            raise TypeError(f"layers must be True, False or 'fine', got {self.layers!r}")
        for name in ("progress_bar", "prog_bar"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {getattr(self, name)!r}")
        _check_seconds("max_seconds", self.max_seconds)
        _check_share("max_overhead", self.max_overhead)
        if not self.name or not isinstance(self.name, str):
            raise ValueError(f"name must be a non-empty string, got {self.name!r}")
        if "/" in self.name:
            raise ValueError(
                "name must not contain '/', which ends the group in logged names, got "
                f"{self.name!r}"
            )
        if not isinstance(self.save_eigenvalues, str | PathLike | None):
            raise TypeError(
                f"save_eigenvalues must be a folder or None, got {self.save_eigenvalues!r}"
            )
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise TypeError(f"seed must be an integer, got {self.seed!r}")

    @property
    def meaning(self) -> dict[str, Any]:
        """What the numbers of a run depend on, and must not change within it."""
        return {"method": self.method, "rtol": self.rtol, "module_mode": self.module_mode}

    @property
    def asked(self) -> dict[str, Any]:
        """What else it takes to measure the same: kept with a checkpoint, builtin types only."""
        name = None
        if self.loss_fn is not None:
            kind = type(self.loss_fn)
            name = f"{getattr(self.loss_fn, '__module__', kind.__module__)}:" + getattr(
                self.loss_fn, "__qualname__", kind.__qualname__
            )
        return {"loss_fn": name, "layers": self.layers, "seed": self.seed}


def _check_data(data: object) -> None:
    """Refuse what cannot be a batch; the rest is up to the module's own transfer hooks."""
    kind = type(data).__name__
    if isinstance(data, Dataset):
        raise TypeError(
            f"data must be a batch or a DataLoader, got a {kind}: wrap it in DataLoader(...)"
        )
    if isinstance(data, (str, bytes, int, float, Iterator)):
        raise TypeError(f"data must be a batch or a DataLoader, got a {kind}: {data!r}")
    if isinstance(data, (list, tuple, Mapping)) and not data:
        raise ValueError(f"data must be a batch or a DataLoader, got an empty {kind}")
    if isinstance(data, list) and len(data) == 1 and isinstance(data[0], tuple):
        raise TypeError(
            "data must be a batch or a DataLoader, got a list of one tuple: pass the tuple itself"
        )


def _check_positive(name: str, value: object) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a positive integer or None, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be a positive integer or None, got {value}")


def _check_seconds(name: str, value: object) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a positive number of seconds or None, got {value!r}")
    if not value > 0:
        raise ValueError(f"{name} must be a positive number of seconds or None, got {value}")


def _check_share(name: str, value: object) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number between 0 and 1 or None, got {value!r}")
    if not 0 < value < 1:
        raise ValueError(f"{name} must be a number between 0 and 1 or None, got {value}")
