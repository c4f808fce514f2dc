"""The files, options, switches and methods that the documents name exist."""

import json
import re
import runpy
from itertools import product
from pathlib import Path

import pytest
from flax.traverse_util import flatten_dict

from tests import guards
from wsal_jax import methods

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
README = (ROOT / "README.md").read_text()
TEXTS = {path.name: path.read_text() for path in DOCUMENTS}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_and_links_exist(document):
    text = TEXTS[document.name]
    for name in re.findall(r"\b((?:configs|launch|wsal_jax|tests)/[\w/]+\.(?:py|sh))\b", text):
        assert (ROOT / name).exists(), name
    for link in re.findall(r"\]\(([^)#:]+)(?:#[\w-]*)?\)", text):
        assert (document.parent / link).exists(), link


def test_the_readme_is_short_and_has_every_method():
    assert README.count("\n") <= 150
    for name in methods.names():
        assert f"configs/{name}.py" in README


def get_config(name, text):
    return runpy.run_path(str(ROOT / "configs" / f"{name}.py"))["get_config"](text)


@pytest.mark.parametrize("document", TEXTS)
def test_configs_take_the_switches(document):
    """Of every `--config=configs/<method>.py:<switches>`."""
    for name, switches in re.findall(r"configs/(\w+)\.py(?::([\w=+,./]+))?", TEXTS[document]):
        if name != "common":
            get_config(name, switches)


def test_options_exist():
    datasets = ("synthetic_untrimmed/thumos", "feature_folder", "thumos14", "activitynet/1.3", "image_folder", "cub200")
    options = set()
    for name, dataset in product(methods.names(), datasets):
        config = json.loads(get_config(name, f"dataset={dataset}").to_json())
        options |= set(flatten_dict({"config": config}, sep="."))
    groups = {option.rsplit(".", i)[0] for option in options for i in (1, 2)}
    named = {x for text in TEXTS.values() for x in re.findall(r"\b(config\.[a-z0-9_]+(?:\.[a-z0-9_]+)*)", text)}
    named -= {"config.py", "config.json"}  # files
    assert len(named) > 10
    assert named <= options | groups, sorted(named - options - groups)


def test_every_module_is_listed_once_for_contributors():
    listed = re.findall(r"^\| `((?:wsal_jax|configs|launch)/\S+)` \|", TEXTS["CONTRIBUTING.md"], re.MULTILINE)
    files = [path for folder in ("wsal_jax", "configs", "launch") for path in (ROOT / folder).rglob("*.*")]
    there = [path.relative_to(ROOT).as_posix() for path in files if path.suffix in (".py", ".sh")]
    assert sorted(listed) == sorted(name for name in there if not name.endswith("__init__.py"))


def test_the_notebook_is_kept_without_outputs():
    cells = json.loads((ROOT / "docs" / "example.ipynb").read_text())["cells"]
    assert cells and not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


def test_ci_finds_one_test_command():
    pattern = re.search(r"grep -m1 -E '(.*)' README.md", (ROOT / ".ci" / "run").read_text()).group(1)
    assert len(re.findall(pattern, README, re.MULTILINE)) == 1


def test_every_guard_is_where_its_test_says_and_every_fault_has_one():
    """See guards.py. The runs of kill.py need no guard taken out: they show whether the others hold together."""
    rows = re.findall(r"^\| ([^|]+) \| [^|]+ \| (?!`python)", (ROOT / "docs" / "reliability.md").read_text(), re.M)
    rows = rows[rows.index("SIGTERM, Ctrl-C to one process, alone or of two") :]
    assert {guard.fault for guard in guards.GUARDS} == set(rows)
    for guard in guards.GUARDS:
        assert guards.without(guard, ROOT) != (ROOT / guard.file).read_text()
