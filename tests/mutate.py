"""Mutation testing: changes one place of the code at a time and runs the tests that should fail.

    python tests/mutate.py                                   a sample of every module below, about an hour on two cores
    python tests/mutate.py --modules wsal_jax/localize.py --count 20 --seed 1

A mutant survives if all its tests pass; it is then printed with its change. Either the tests miss something, or the
change makes no difference (such as `<` for `<=` if the two sides are never equal). Only a copy of the checkout is
changed.
"""

import argparse
import ast
import collections
import concurrent.futures
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
CONTRACT = "tests/test_method.py"
TESTS = {
    "wsal_jax/aggregate.py": ["tests/test_aggregate.py"],
    "wsal_jax/chain.py": ["tests/test_chain.py"],
    "wsal_jax/localize.py": ["tests/test_localize.py"],
    "wsal_jax/matching.py": ["tests/test_metrics.py"],
    "wsal_jax/metrics.py": ["tests/test_metrics.py"],
    "wsal_jax/train.py": ["tests/test_train.py", "tests/test_main.py"],
    "wsal_jax/methods/maan.py": ["tests/test_maan.py", CONTRACT],
    "wsal_jax/methods/dgam.py": ["tests/test_dgam.py", CONTRACT],
    "wsal_jax/methods/iwo.py": ["tests/test_iwo.py", CONTRACT],
    "wsal_jax/methods/sal.py": ["tests/test_sal.py", CONTRACT],
    "wsal_jax/methods/star.py": ["tests/test_star.py", CONTRACT],
    "wsal_jax/methods/markov.py": ["tests/test_markov.py", CONTRACT],
}
"""The tests of each module, the one most likely to fail first."""

SWAPS = {
    ast.Add: "-",
    ast.Sub: "+",
    ast.Mult: "/",
    ast.Div: "*",
    ast.Lt: "<=",
    ast.LtE: "<",
    ast.Gt: ">=",
    ast.GtE: ">",
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.And: "or",
    ast.Or: "and",
}
TIMEOUT = 600
"""Seconds; a mutant that takes longer counts as killed, for it hangs."""


class Mutant(NamedTuple):
    """One change of one file."""

    module: str
    line: int
    old: str
    new: str
    source: str
    """Of the whole module, changed."""


def mutants(module: str, source: str) -> Iterator[Mutant]:
    """All changes of a module: another operator, constant or condition, or one factor or summand less."""
    starts = [0, *[i + 1 for i, byte in enumerate(source.encode()) if byte == ord("\n")]]

    def change(node: ast.AST, new: str) -> Mutant:
        code = source.encode()
        first = starts[node.lineno - 1] + node.col_offset
        last = starts[node.end_lineno - 1] + node.end_col_offset
        changed = (code[:first] + new.encode() + code[last:]).decode()
        return Mutant(module, node.lineno, code[first:last].decode(), new, changed)

    def text(node: ast.AST) -> str:
        return f"({ast.get_source_segment(source, node)})"

    for node in ast.walk(_without_annotations(ast.parse(source))):
        match node:
            case ast.BinOp(left, op, right) if type(op) in SWAPS:
                yield change(node, f"({text(left)} {SWAPS[type(op)]} {text(right)})")
                if isinstance(op, ast.Mult | ast.Div | ast.Add):
                    yield change(node, text(left))
            case ast.Compare(left, [op], [right]) if type(op) in SWAPS:
                yield change(node, f"({text(left)} {SWAPS[type(op)]} {text(right)})")
            case ast.BoolOp(op, [left, right]):
                yield change(node, f"({text(left)} {SWAPS[type(op)]} {text(right)})")
            case ast.UnaryOp(ast.Not() | ast.USub(), operand):
                yield change(node, text(operand))
            case ast.Constant(bool() as value):
                yield change(node, str(not value))
            case ast.Constant(int() | float() as value):
                yield change(node, repr(value + 1))
            case ast.IfExp(_, body, orelse):
                yield change(node, text(body))
                yield change(node, text(orelse))


def _without_annotations(tree: ast.Module) -> ast.Module:
    """Removes what the tests need not cover: shapes in signatures, docstrings, messages and slices of types."""

    class Strip(ast.NodeTransformer):
        def visit_AnnAssign(self, node):
            return node.value and self.visit(node.value)

        def visit_arg(self, node):
            return None

        def visit_JoinedStr(self, node):
            return None

        def visit_Raise(self, node):
            return None

        def visit_FunctionDef(self, node):
            node.returns = None
            return self.generic_visit(node)

    return Strip().visit(tree)


def survives(mutant: Mutant, copy: Path) -> bool:
    """Whether all tests of the module pass on a copy of the checkout."""
    path = copy / mutant.module
    original = path.read_text(encoding="utf-8")
    path.write_text(mutant.source, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider", *TESTS[mutant.module]]
    try:
        return not subprocess.run(command, cwd=copy, capture_output=True, timeout=TIMEOUT).returncode
    except subprocess.TimeoutExpired:
        return False
    finally:
        path.write_text(original, encoding="utf-8")


def copy_checkout(folder: Path) -> Path:
    """A copy of the checkout, without runs and environment, beside a link to the real data that some tests use."""
    copy = folder / "checkout"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv", "runs", "__pycache__"))
    if (ROOT.parent / "shared").exists():
        (folder / "shared").symlink_to((ROOT.parent / "shared").resolve())
    return copy


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modules", nargs="+", choices=TESTS, default=list(TESTS), metavar="MODULE")
    parser.add_argument("--count", type=int, default=10, help="mutants of each module, drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="at the same time")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    chosen = []
    for module in args.modules:
        there = list(mutants(module, (ROOT / module).read_text(encoding="utf-8")))
        chosen += rng.sample(there, min(args.count, len(there)))
    alive: dict[str, int] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        copies = [copy_checkout(Path(folder) / str(i)) for i in range(args.jobs)]
        free = list(copies)

        def one(mutant: Mutant) -> bool:
            copy = free.pop()
            try:
                return survives(mutant, copy)
            finally:
                free.append(copy)

        for mutant, alive_now in zip(chosen, pool.map(one, chosen)):
            alive[mutant.module] += alive_now
            if alive_now:
                print(f"survived  {mutant.module}:{mutant.line}  {mutant.old}  ->  {mutant.new}", flush=True)
    tried = collections.Counter(mutant.module for mutant in chosen)
    for module in args.modules:
        print(f"{module}: {alive[module]} of {tried[module]} survived")
    print(f"all: {sum(alive.values())} of {len(chosen)} survived, {sum(alive.values()) / len(chosen):.0%}")


if __name__ == "__main__":
    main()
