"""Search spaces of `wsal_jax.tune`: `common.py`, which has the budget, and one file per method."""
