"""Commands: each is `python -m experiments.NAME --help`."""
