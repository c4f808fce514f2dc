"""In a checkout, the folder `configs` beside this package; a wheel has that folder in this place."""

from pathlib import Path

__path__ = [str(Path(__file__).parents[2] / "configs")]
