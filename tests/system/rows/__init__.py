"""Kinds of modules, batches and steps that people train, each with what the monitor makes of it."""

from tests.system.rows import batches, copies, derivatives, layers, running, steps
from tests.system.rows.base import CASES, REFUSED, Case

__all__ = [
    "CASES",
    "REFUSED",
    "Case",
    "batches",
    "copies",
    "derivatives",
    "layers",
    "running",
    "steps",
]
