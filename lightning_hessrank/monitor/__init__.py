"""The callback, and the run that it measures."""
