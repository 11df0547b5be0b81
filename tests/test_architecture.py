"""Who may import whom."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import moe_placer

PACKAGE = Path(moe_placer.__file__).parent
SOLVERS = PACKAGE.parent / "solvers"

# A module may reach those of a lower tier only. What is not named here may be used by any, but counts on the way: a
# helper does not smuggle a higher tier into a lower one.
TIERS: tuple[tuple[str, ...], ...] = (
    ("errors", "files"),
    ("instance",),
    ("traffic", "fabric"),
    ("problem",),
    ("placement", "verifier"),
    ("result",),
    ("starting", "stating", "solving", "progress"),
    ("export", "dag", "report", "bench", "compare", "schedule", "sweep", "crosscheck", "cli"),
)
TIER = {f"moe_placer.{name}": tier for tier, names in enumerate(TIERS) for name in names}
HEAVY = ("ortools", "scipy.optimize")


def find_modules() -> dict[str, Path]:
    """Name every module of the package, without the solvers."""
    found = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = ("moe_placer", *file.relative_to(PACKAGE).with_suffix("").parts)
        if "solvers" not in parts:
            found[".".join(parts).removesuffix(".__init__")] = file
    return found


def _is_for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def _statements(node: ast.AST, skip_types: bool) -> Iterator[ast.AST]:
    yield node
    for child in ast.iter_child_nodes(node):
        if not (skip_types and _is_for_types_only(child)):
            yield from _statements(child, skip_types)


def imports_of(name: str, file: Path, skip_types: bool = False) -> set[str]:
    """Name what a file imports, anywhere in it: ``from a import b`` gives both ``a`` and ``a.b``."""
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in _statements(ast.parse(file.read_text(encoding="utf-8")), skip_types):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return found


MODULES = find_modules()
IMPORTS = {name: imports_of(name, file) & MODULES.keys() - {"moe_placer"} for name, file in MODULES.items()}


def reachable(name: str) -> dict[str, str]:
    """Map every module that a module reaches to the one that imports it."""
    via: dict[str, str] = {}
    todo = [name]
    while todo:
        here = todo.pop()
        for target in IMPORTS[here]:
            if target not in via:
                via[target] = here
                todo.append(target)
    return via


def part_of(name: str) -> str:
    """Name the direct part of the package that a module belongs to."""
    return ".".join(name.split(".")[:2])


def test_there_is_something_to_look_at() -> None:
    assert {"moe_placer.errors", "moe_placer.instance.schema", "moe_placer.verifier.rules"} <= MODULES.keys()
    assert "moe_placer.errors" in IMPORTS["moe_placer.instance.reader"]
    assert "moe_placer.instance.yaml_reader" in reachable("moe_placer.verifier.check")


@pytest.mark.parametrize("name", [name for name in MODULES if part_of(name) in TIER])
def test_a_module_reaches_lower_tiers_only(name: str) -> None:
    own = TIER[part_of(name)]
    for target, importer in reachable(name).items():
        tier = TIER.get(part_of(target), -1)
        assert tier <= own, f"{name} reaches {target}, imported by {importer}"


@pytest.mark.parametrize("pair", [("traffic", "fabric"), ("fabric", "traffic")])
def test_traffic_and_fabric_do_not_know_each_other(pair: tuple[str, str]) -> None:
    own, other = (f"moe_placer.{name}" for name in pair)
    reached = {part_of(target) for name in MODULES if part_of(name) == own for target in reachable(name)}
    assert other not in reached


SCHEDULED = {"errors", "files", "instance", "traffic", "fabric", "placement", "dag", "workers", "schedule"}
SCHEDULING = {"schedule", "sweep", "crosscheck", "compare", "cli"}


@pytest.mark.parametrize("name", MODULES)
def test_the_schedule_knows_the_dag_and_what_is_below_it(name: str) -> None:
    own = part_of(name).removeprefix("moe_placer.")
    reached = {part_of(target).removeprefix("moe_placer.") for target in reachable(name)}
    if own == "schedule":
        assert reached <= SCHEDULED
    elif own not in SCHEDULING:
        assert "schedule" not in reached


MAY_BE_VERIFIED_WITH = {
    "moe_placer.errors",
    "moe_placer.files",  # bytes of a file, which is not what is verified
    "moe_placer.instance",
    "moe_placer.instance.schema",
    "moe_placer.traffic",
    "moe_placer.traffic.recording",
    "moe_placer.fabric.graph",
    "moe_placer.placement",
}


@pytest.mark.parametrize("name", [name for name in MODULES if part_of(name) == "moe_placer.verifier"])
def test_the_verifier_shares_no_code_with_what_it_verifies(name: str) -> None:
    own = {target for target in IMPORTS[name] if part_of(target) == "moe_placer.verifier"}
    assert IMPORTS[name] - own <= MAY_BE_VERIFIED_WITH
    assert "moe_placer" not in imports_of(name, MODULES[name]), "the package itself may hand out anything"
    assert not any(target.startswith("moe_placer.solvers") for target in imports_of(name, MODULES[name]))


@pytest.mark.parametrize("name", MODULES)
def test_only_the_registry_names_solvers(name: str) -> None:
    assert not any(target.split(".")[:2] == ["moe_placer", "solvers"] for target in imports_of(name, MODULES[name]))
    assert not any(target.split(".")[0] == "solvers" for target in imports_of(name, MODULES[name]))
    if name == "moe_placer.registry":
        return
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            assert not node.value.startswith("moe_placer.solvers"), f"{name}, line {node.lineno}"


@pytest.mark.parametrize("file", sorted(SOLVERS.glob("*.py")), ids=lambda file: file.stem)
def test_a_solver_knows_no_file_format(file: Path) -> None:
    known = {part_of(target) for target in imports_of(f"moe_placer.solvers.{file.stem}", file, skip_types=True)}
    forbidden = {"instance", "traffic", "placement", "verifier", "files", "export", "dag", "report", "cli"}
    assert not known & {f"moe_placer.{name}" for name in forbidden}


def _loaded_by(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*sys.modules, sep='\\n')"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(run.stdout.split())


@pytest.mark.parametrize("name", ["moe_placer", "moe_placer.verifier"])
def test_importing_loads_no_optimiser(name: str) -> None:
    loaded = _loaded_by(f"import {name}")
    assert name in loaded
    assert not loaded & set(HEAVY)
