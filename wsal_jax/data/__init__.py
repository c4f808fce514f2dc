"""TFDS builders of snippet features, and the pipeline that serves them."""

BUILDERS = ("synthetic_untrimmed", "feature_folder", "thumos14", "activitynet", "image_folder", "cub200")
"""Each registers itself with TFDS when the module of its name is imported."""
