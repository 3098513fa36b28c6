"""The monitor on models of published packages; run by hand, see README.md."""
