"""What the monitor says on the console: the link, the chosen method. Silence it like any logger."""

from __future__ import annotations

import logging

logger = logging.getLogger("lightning_hessrank")
if not logging.getLogger().hasHandlers() and not logger.handlers:
    # Like Lightning's own messages: shown unless the application configures logging itself.
    logger.addHandler(logging.StreamHandler())
    logger.setLevel(logging.INFO)
    logger.propagate = False
