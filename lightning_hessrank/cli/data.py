"""Reference data named on the command line."""

from __future__ import annotations

from typing import Any

import typer
from torch.utils.data import DataLoader

from lightning_hessrank.cli.parameters import user_code
from lightning_hessrank.cli.spec import Spec
from lightning_hessrank.monitor.reference import as_batches, collect
from lightning_hessrank.network.batches import list_tensors

HINT = "'--data'"


def reference_data(spec: Spec) -> Any:
    """Return a ``DataLoader`` or a batch from what DATA names.

    Raises:
        BadParameter: it fails, or gives something else.
    """
    with user_code(f"{spec.text!r}", HINT):
        data = spec.build()
        if hasattr(data, "train_dataloader"):
            data.prepare_data()
            data.setup("fit")
            data = data.train_dataloader()
    if not isinstance(data, DataLoader) and not list_tensors(data):
        raise typer.BadParameter(
            f"{spec.text!r} gives a {type(data).__name__}; it takes a LightningDataModule, a "
            "DataLoader, or one batch of tensors",
            param_hint=HINT,
        )
    return data


def reference_batches(spec: Spec, max_samples: int, seed: int) -> list[Any]:
    """Return the batches that a measurement with these settings takes.

    Raises:
        BadParameter: there are none.
    """
    data = reference_data(spec)
    with user_code(f"the batches of {spec.text!r}", HINT):
        return collect(as_batches(data, lambda batch: batch), max_samples, seed=seed)
