"""A clock that stands still until it is told."""

from __future__ import annotations


class FakeTime:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds
