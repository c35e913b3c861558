"""Faults on purpose, against real processes; the oracle's bill is the verdict. `python -m tests.chaos kill --help`."""
