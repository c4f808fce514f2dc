"""The README's commands name what there is."""

import re
from pathlib import Path

from wsal_jax import methods

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_files_and_options_in_the_readme_exist():
    for name in re.findall(r"\b((?:configs|launch|wsal_jax|tests)/[\w/]+\.(?:py|sh))", README):
        assert (ROOT / name).exists(), name
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / link).exists(), link
    for name in methods.names():
        assert f"configs/{name}.py" in README


def test_ci_finds_one_test_command():
    pattern = re.search(r"grep -m1 -E '(.*)' README.md", (ROOT / ".ci" / "run").read_text()).group(1)
    assert len(re.findall(pattern, README, re.MULTILINE)) == 1
