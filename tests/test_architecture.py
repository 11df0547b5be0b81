"""Who may import whom."""

from __future__ import annotations

import ast
import builtins
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import networkx as nx
import pytest

import moe_placer

PACKAGE = Path(moe_placer.__file__).parent
SOLVERS = PACKAGE.parent / "solvers"

# A room (a folder, or a loose file) may know those of lower floors only. Every room stands here; one that does not,
# or one that is gone, fails.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("files", "limits", "workers"),
    ("instance",),
    ("traffic", "fabric", "placement"),
    ("problem", "verifier", "dag"),
    ("bounds", "schedule"),
    ("result",),
    ("search",),
    ("decomposition",),
    ("solve",),
    ("replan",),
    ("engines", "library", "plugin"),
    ("experiments", "watch"),
    ("decisions",),
    ("cli",),
    ("__main__",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
LOOSE = {"errors", "files", "limits", "placement", "result", "plugin", "__main__"}
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


@cache
def parsed(file: Path) -> ast.Module:
    """Read a file once: several tests look at each."""
    return ast.parse(file.read_text(encoding="utf-8"))


_BLOCKS = ("body", "orelse", "finalbody", "handlers", "cases")


def _statements(node: ast.AST, skip_types: bool = False) -> Iterator[ast.AST]:
    """Yield statements, those within others too; no import is within an expression, where most of a file is."""
    for name in _BLOCKS:
        for child in getattr(node, name, ()):
            if not (skip_types and _is_for_types_only(child)):
                yield child
                yield from _statements(child, skip_types)


@cache
def texts_of(file: Path) -> list[ast.Constant]:
    """List the texts of a file that are no documentation."""
    nodes = [*ast.walk(parsed(file))]
    documentation = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    found = [node for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return [node for node in found if id(node) not in documentation]


@cache
def imports_of(name: str, file: Path, skip_types: bool = False) -> frozenset[str]:
    """Name what a file imports, anywhere in it: ``from a import b`` gives both ``a`` and ``a.b``."""
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in _statements(parsed(file), skip_types):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return frozenset(found)


MODULES = find_modules()


@cache
def imports() -> dict[str, frozenset[str]]:
    """Map every module to those of the package that it imports; read when first asked for."""
    return {name: imports_of(name, file) & MODULES.keys() - {"moe_placer"} for name, file in MODULES.items()}


def room_of(name: str) -> str:
    """Name the room that a module is in."""
    return name.split(".")[1]


def reachable(name: str) -> dict[str, str]:
    """Map every module that a module reaches to the one that imports it."""
    via: dict[str, str] = {}
    todo = [name]
    while todo:
        here = todo.pop()
        for target in imports()[here]:
            if target not in via:
                via[target] = here
                todo.append(target)
    return via


def test_there_is_something_to_look_at() -> None:
    assert {"moe_placer.errors", "moe_placer.instance.schema", "moe_placer.verifier.rules"} <= MODULES.keys()
    assert "moe_placer.errors" in imports()["moe_placer.instance.reader"]
    assert "moe_placer.instance.yaml_reader" in reachable("moe_placer.verifier.check")


def test_every_room_has_its_floor() -> None:
    rooms = {room_of(name) for name in MODULES if name != "moe_placer"}
    assert rooms == FLOOR.keys()
    assert {file.stem for file in PACKAGE.glob("*.py")} - {"__init__"} == LOOSE
    assert all((PACKAGE / room / "__init__.py").is_file() for room in rooms - LOOSE)


@pytest.mark.parametrize("name", [name for name in MODULES if name != "moe_placer"])
def test_a_room_knows_lower_floors_only(name: str) -> None:
    for target in imports()[name]:
        inside = room_of(target) == room_of(name)
        assert inside or FLOOR[room_of(target)] < FLOOR[room_of(name)], f"{name} imports {target}"


# Module names that stand in two rooms, since both modules are about the same thing; any other name stands once.
TWINS = {
    "capacity": {"problem", "verifier"},
    "coverage": {"problem", "solvers"},
    "layer_time": {"solve", "verifier"},
    "migration": {"replan", "verifier"},
    "nics": {"fabric", "verifier"},
    "scenarios": {"problem", "verifier"},
    "sending": {"problem", "verifier"},
}


def test_no_two_modules_have_one_name() -> None:
    rooms: dict[str, list[str]] = {}
    for name, file in MODULES.items():
        if not file.stem.startswith("__"):
            rooms.setdefault(file.stem, []).append(room_of(name))
    for file in SOLVERS.glob("[!_]*.py"):
        rooms.setdefault(file.stem, []).append("solvers")
    assert {name: sorted(where) for name, where in rooms.items() if len(where) > 1} == {
        name: sorted(where) for name, where in TWINS.items()
    }


def test_no_modules_import_each_other() -> None:
    graph = nx.DiGraph(
        (name, target) for name, targets in imports().items() for target in targets if not target.startswith(name)
    )
    graph.remove_edges_from([edge for edge in graph.edges if edge[0].startswith(edge[1] + ".")])
    assert list(nx.simple_cycles(graph)) == []


MAY_BE_VERIFIED_WITH = {
    "moe_placer.errors",
    "moe_placer.files",  # bytes of a file, which is not what is verified
    "moe_placer.instance",
    "moe_placer.instance.schema",
    "moe_placer.traffic",
    "moe_placer.traffic.recording",
    "moe_placer.placement",
}


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("moe_placer.verifier")])
def test_the_verifier_shares_no_code_with_what_it_verifies(name: str) -> None:
    own = {target for target in imports()[name] if target.startswith("moe_placer.verifier")}
    assert imports()[name] - own <= MAY_BE_VERIFIED_WITH
    assert "moe_placer" not in imports_of(name, MODULES[name]), "the package itself may hand out anything"
    assert not any(target.startswith("moe_placer.solvers") for target in imports_of(name, MODULES[name]))


@pytest.mark.parametrize("name", MODULES)
def test_only_the_registry_names_solvers(name: str) -> None:
    assert not any(target.split(".")[:2] == ["moe_placer", "solvers"] for target in imports_of(name, MODULES[name]))
    assert not any(target.split(".")[0] == "solvers" for target in imports_of(name, MODULES[name]))
    if name == "moe_placer.solve.registry":
        return
    for node in texts_of(MODULES[name]):
        assert not str(node.value).startswith("moe_placer.solvers"), f"{name}, line {node.lineno}"


@pytest.mark.parametrize("file", sorted(SOLVERS.glob("*.py")), ids=lambda file: file.stem)
def test_a_solver_knows_no_file_format(file: Path) -> None:
    imports = imports_of(f"moe_placer.solvers.{file.stem}", file, skip_types=True) & MODULES.keys() - {"moe_placer"}
    forbidden = {"instance", "traffic", "placement", "verifier", "files", "dag", "experiments", "cli"}
    assert not {room_of(target) for target in imports} & forbidden


def _lengths(file: Path) -> Iterator[tuple[str, int]]:
    """Yield the lines of a file, and lines of code of each of its functions: no docstring, comment or blank line."""
    text = file.read_text(encoding="utf-8")
    lines = text.splitlines()
    yield file.name, len(lines)
    for node in _statements(parsed(file)):
        if isinstance(node, ast.FunctionDef):
            documented = range(0)
            if ast.get_docstring(node) is not None:
                documented = range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)
            code = [
                lines[at - 1].strip() for at in range(node.lineno, (node.end_lineno or 0) + 1) if at not in documented
            ]
            yield f"{file.stem}.{node.name}", sum(1 for line in code if line and not line.startswith("#"))


def test_functions_have_fewer_than_60_lines_and_files_fewer_than_400() -> None:
    found = [pair for file in (*MODULES.values(), *SOLVERS.glob("*.py")) for pair in _lengths(file)]
    assert len(found) > 2000
    assert {name: lines for name, lines in found if lines >= (400 if name.endswith(".py") else 60)} == {}


def _loaded_by(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*sys.modules, sep='\\n')"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(run.stdout.split())


@pytest.mark.parametrize("name", ["moe_placer", "moe_placer.verifier"])
def test_importing_loads_no_optimiser(name: str) -> None:
    loaded = _loaded_by(f"import {name}")
    assert name in loaded
    assert not loaded & set(HEAVY)


def _dataclasses() -> Iterator[tuple[str, dict[str, bool], bool]]:
    """Name, options and whether there are arrays among its fields, of every dataclass that proofs rest on."""
    for name, file in MODULES.items():
        if not name.startswith(tuple(f"moe_placer.{room}" for room in ("problem", "bounds", "verifier", "result"))):
            continue
        for node in _statements(parsed(file)):
            for made in getattr(node, "decorator_list", []) if isinstance(node, ast.ClassDef) else []:
                if isinstance(made, ast.Call) and ast.unparse(made.func) == "dataclass":
                    given = {one.arg: ast.literal_eval(one.value) for one in made.keywords if one.arg}
                    fields = [ast.unparse(one.annotation) for one in node.body if isinstance(one, ast.AnnAssign)]
                    arrays = any(word in field for field in fields for word in ("Floats", "Ints", "NDArray"))
                    yield f"{name}.{node.name}", given, arrays  # type: ignore[attr-defined]


def test_what_proofs_rest_on_cannot_be_changed_and_arrays_are_not_compared() -> None:
    found = list(_dataclasses())
    assert len(found) > 20
    assert [name for name, given, _ in found if not given.get("frozen")] == []
    assert [name for name, given, arrays in found if arrays and given.get("eq", True)] == []


def test_errors_have_one_base_class() -> None:
    raised = {name for name, kind in vars(builtins).items() if isinstance(kind, type) and issubclass(kind, Exception)}
    bases = {
        node.name: [ast.unparse(base).rpartition(".")[2] for base in node.bases]
        for file in (*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "solvers").glob("*.py"))
        for node in _statements(parsed(file))
        if isinstance(node, ast.ClassDef)
    }

    def above(name: str) -> set[str]:
        found, todo = set[str](), [name]
        while todo:
            found.add(here := todo.pop())
            todo += set(bases.get(here, [])) - found
        return found

    errors = {name for name in bases if "MoePlacerError" in above(name) or above(name) & raised}
    assert {"InputError", "UsageError", "NotPlainTensorsError"} <= errors
    assert {name for name in errors if "MoePlacerError" not in above(name)} == set()
