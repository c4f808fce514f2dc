"""Weakly-supervised temporal action localization in JAX."""
