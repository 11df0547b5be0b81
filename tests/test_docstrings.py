"""What docstrings must say: the parameters of functions that take many, and examples that run."""

from __future__ import annotations

import ast
import doctest
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import moe_placer

PACKAGE = Path(moe_placer.__file__).parent
MODULES = {
    ".".join(("moe_placer", *file.relative_to(root).with_suffix("").parts)).removesuffix(".__init__"): file
    for root in (PACKAGE, PACKAGE.parent)
    for file in sorted(root.rglob("*.py") if root == PACKAGE else (root / "solvers").glob("*.py"))
    if root != PACKAGE or "solvers" not in file.relative_to(root).parts
}
REFERENCE = re.compile(r"^Parameters as of `([\w.]+)`\.$", re.MULTILINE)  # of one signature, explained there
MANY = 4  # parameters from which on a section explains them
EXAMPLES = sorted(name for name, file in MODULES.items() if ">>> " in file.read_text())


def _public(module: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    """List functions of ``__all__`` (else all without an underscore), and methods of such classes."""
    assigned = (node for node in module.body if isinstance(node, ast.Assign))
    named = [ast.literal_eval(node.value) for node in assigned if ast.unparse(node.targets[0]) == "__all__"]
    for node in module.body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        if named and node.name not in named[0]:
            continue
        if isinstance(node, ast.FunctionDef):
            yield node.name, node
        else:
            methods = (one for one in node.body if isinstance(one, ast.FunctionDef) and not one.name.startswith("_"))
            yield from ((f"{node.name}.{one.name}", one) for one in methods)


def unexplained(function: ast.FunctionDef) -> set[str]:
    """Name the parameters that a function's Parameters section leaves out, where it takes many."""
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    names = {argument.arg for argument in arguments} - {"self", "cls"}
    if len(names) < MANY or REFERENCE.search(ast.get_docstring(function) or ""):
        return set()
    section = re.search(
        r"^Parameters\n-{10}\n(.*?)(?:\n\n\w+\n-{4,}|\Z)", ast.get_docstring(function) or "", re.MULTILINE | re.DOTALL
    )
    entries = re.findall(r"^(\w[\w, ]*)(?: : .*)?$", section[1], re.MULTILINE) if section else []
    return names - {name.strip() for entry in entries for name in entry.split(",")}


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ('def f(a, b, c): "Add."', set()),
        ('def f(a, b, c, *, d): "Add."', {"a", "b", "c", "d"}),
        ('def f(a, b, c, d):\n """Add.\n\n Parameters\n ----------\n a, b : int\n     Of d.\n c\n """', {"d"}),
        (
            'def f(a, b, c, d):\n """Add.\n\n Parameters\n ----------\n a, b, c\n\n Returns\n -------\n d\n """',
            {"d"},
        ),
    ],
)
def test_what_a_section_leaves_out_is_named(text: str, left: set[str]) -> None:
    (function,) = ast.parse(text).body
    assert isinstance(function, ast.FunctionDef)
    assert unexplained(function) == left


def test_functions_of_many_parameters_explain_them() -> None:
    left = {}
    for name, file in MODULES.items():
        if not name.startswith("moe_placer.cli."):  # a command's parameters are options, which `--help` explains
            public = _public(ast.parse(file.read_text()))
            left |= {f"{name}.{where}": names for where, function in public if (names := unexplained(function))}
    assert left == {}


def test_what_is_explained_elsewhere_is() -> None:
    """A reference names a method or function of the same parameters that explains them itself."""
    explained, references = {}, []
    for name, file in MODULES.items():
        for where, function in _public(ast.parse(file.read_text())):
            text = ast.get_docstring(function) or ""
            if found := REFERENCE.search(text):
                references.append((found[1], ast.unparse(function.args)))
            elif "Parameters\n---" in text:
                explained[where] = explained[f"{name}.{where}"] = ast.unparse(function.args)
    assert references
    assert [one for one in references if explained.get(one[0]) != one[1]] == []


def test_there_are_examples() -> None:
    assert {"moe_placer.instance.reader", "moe_placer.problem.replica_counts"} <= set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_in_docstrings_run(name: str) -> None:
    failed, tried = doctest.testmod(import_module(name), raise_on_error=False)
    assert tried > 0
    assert failed == 0
