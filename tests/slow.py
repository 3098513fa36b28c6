"""The marker ``slow``: what ``pytest -m "not slow"`` leaves out, for an answer within a minute."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def first(count: int, values: Iterable[Any]) -> list[Any]:
    """Values of a parameter, of which all but the first few are slow."""
    return [
        value if i < count else pytest.param(value, marks=pytest.mark.slow)
        for i, value in enumerate(values)
    ]
