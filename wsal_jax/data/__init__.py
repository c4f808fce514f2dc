"""TFDS builders of snippet features, and the pipeline that serves them."""
