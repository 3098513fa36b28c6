"""What the monitor says on the console: the link, the chosen method. Silence it like any logger."""

from __future__ import annotations

import logging
import sys

from tqdm import tqdm


class _AboveBars(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to what is standard error now: a live display of Rich's stands in for it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a message on lines of its own, above any progress bar."""
        self.stream = sys.stderr
        with tqdm.external_write_mode(file=sys.stderr):
            super().emit(record)


logger = logging.getLogger("lightning_hessrank")
if not logging.getLogger().hasHandlers() and not logger.handlers:
    # Like Lightning's own messages: shown unless the application configures logging itself.
    logger.addHandler(_AboveBars())
    logger.setLevel(logging.INFO)
    logger.propagate = False
