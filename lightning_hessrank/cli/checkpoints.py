"""Lightning checkpoints in a folder: found, read with weights only, in the order of training."""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_hessrank.cli.spec import Spec, SpecError


class CheckpointError(ValueError):
    """A file is no checkpoint that can be measured; the message says why."""


@dataclass(frozen=True)
class Checkpoint:
    """What is known of a checkpoint before its network is built."""

    path: Path
    step: int
    """Optimiser steps done."""
    epoch: int
    weights: str
    """SHA-256 of the weights, shortened: the same for copies such as ``last.ckpt``."""

    @classmethod
    def read(cls, path: Path) -> Checkpoint:
        """Read a file.

        Raises:
            CheckpointError: it is broken, or no Lightning checkpoint.
        """
        content = _load(path)
        digest = hashlib.sha256()
        for name, tensor in sorted(_tensors(content["state_dict"]).items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
            digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        step, epoch = content.get("global_step", 0), content.get("epoch", 0)
        return cls(path, int(step), int(epoch), digest.hexdigest()[:16])

    def callbacks(self) -> Mapping[str, Any]:
        """Return the states of the callbacks by their keys."""
        states = _load(self.path).get("callbacks")
        return states if isinstance(states, Mapping) else {}

    def build(self, spec: Spec) -> Any:
        """Build the module with the hyperparameters in the checkpoint, and load its weights.

        Raises:
            CheckpointError: module and checkpoint do not fit.
        """
        content = _load(self.path)
        saved = content.get("hyper_parameters", {})
        hyperparameters = {k: v for k, v in saved.items() if not k.startswith("_")}
        try:
            module: Any = spec.build_module(**hyperparameters)
        except SpecError as error:
            raise CheckpointError(str(error)) from error
        if not hasattr(module, "training_step"):
            raise CheckpointError(
                f"{spec.text!r} gives a {type(module).__name__}, which is no LightningModule (it "
                "has no training_step)"
            )
        try:
            module.load_state_dict(content["state_dict"])
        except RuntimeError as error:
            why = " ".join(str(error).split())
            raise CheckpointError(f"the weights do not fit {spec.text!r}: {why}") from error
        return module


def find_checkpoints(folder: Path) -> tuple[list[Checkpoint], dict[Path, str]]:
    """Return the checkpoints below a folder by step, and what is wrong with the other files."""
    found: list[Checkpoint] = []
    broken: dict[Path, str] = {}
    for path in sorted(folder.rglob("*.ckpt")):
        try:
            found.append(Checkpoint.read(path))
        except CheckpointError as error:
            broken[path] = str(error)
    # `last.ckpt` is a copy of another: sort it behind, so that the other gives the name
    return sorted(found, key=lambda c: (c.step, c.path.name.startswith("last"), c.path)), broken


def _load(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"WeightsUnpickler error:\s*(\S.*)", str(error))
        reason = found[1].strip() if found else "it holds other objects than weights"
        raise CheckpointError(f"it cannot be loaded with weights only: {reason}") from error
    except Exception as error:  # a truncated archive raises half a dozen kinds
        raise CheckpointError(
            f"it is no checkpoint, or cut off ({type(error).__name__} while reading it)"
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), Mapping):
        raise CheckpointError("it is no Lightning checkpoint (it has no state_dict)")
    return content


def _tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}
