"""Spectra of a run on disk: one ``.npz`` file for each measurement."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from lightning_hessrank.results import Measurement


def save_spectra(folder: Path, measurement: Measurement, name: str) -> Path:
    """Write the eigenvalues of a measurement as ``NAME-step=STEP.npz``.

    The file has the arrays ``total`` and, where they were measured, ``outer`` and ``functional``
    (float64, ascending), and the numbers ``step``, ``epoch``, ``rtol`` and ``tolerance``.

    Args:
        folder: made where it does not exist.
        measurement: by the dense method.
        name: the monitor's.

    Raises:
        ValueError: the method gives no eigenvalues.
        OSError: the file cannot be written.
    """
    total = measurement.total
    parts = (total, measurement.outer, measurement.functional)
    arrays: dict[str, Any] = {
        part.part: part.eigenvalues.numpy()
        for part in parts
        if part is not None and part.eigenvalues is not None
    }
    if not arrays:
        raise ValueError(
            f"method={total.method!r} counts eigenvalues without computing them, so there are none "
            "to save; pass method='dense'"
        )
    arrays |= {"step": measurement.step, "epoch": measurement.epoch}
    arrays |= {"rtol": total.rtol, "tolerance": total.tolerance}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-step={measurement.step}.npz"
    unfinished = path.with_suffix(".part")
    with unfinished.open("wb") as file:
        np.savez(file, **arrays)
    os.replace(unfinished, path)
    return path
