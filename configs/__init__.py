"""Configurations: `common.py` and one file per method, which overrides it."""
