"""What `wsal_jax.tune` chose by row of the result tables and data; `python -m wsal_jax.tables` makes this file."""

CHOSEN: dict[str, dict] = {}
