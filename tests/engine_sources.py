"""The engines' own modules with stubs for what needs devices: settings, elastic scaling, logs."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import logging
import os
import sys
import types
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from fetch_engines import VERSIONS

SOURCES = Path(os.environ.get("MOE_PLACER_ENGINES", Path(__file__).parent.parent / ".venv-engines" / "sources"))


def source_of(package: str, version: str) -> Path:
    """Return the folder of a package's modules; skips the test where they have not been fetched."""
    folder = SOURCES / f"{package}-{version}"
    if not folder.exists():
        pytest.skip(f"no sources of {package} {version} in {SOURCES} (`make engines` fetches them)")
    pytest.importorskip("torch", reason="torch is not installed (`make engines` sets up an environment that has it)")
    return folder


def versions_of(package: str) -> list[str]:
    return list(VERSIONS[package])


@contextmanager
def modules(**added: ModuleType) -> Iterator[None]:
    """Put modules under names with dots written as ``__``; on the way out everything below them is forgotten."""
    names = {name.replace("__", "."): module for name, module in added.items()}
    roots = {name.partition(".")[0] for name in names}
    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in roots}
    for name in before:
        del sys.modules[name]
    sys.modules.update(names)
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] in roots]:
            del sys.modules[name]
        sys.modules.update(before)


def stub(path: Path | None = None, **content: Any) -> ModuleType:
    """Return a package with what is given in it; modules below it are read from ``path``."""
    module = types.ModuleType("stub")
    module.__path__ = [] if path is None else [str(path)]
    module.__dict__.update(content)
    return module


def load_file(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def functions_of(path: Path, names: set[str], **globals_: Any) -> dict[str, Any]:
    """Run single functions of a module that cannot be imported as a whole."""
    tree = ast.parse(path.read_text())
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in names]
    assert {node.name for node in found} == names
    space: dict[str, Any] = dict(globals_)
    exec(compile(ast.Module(found, []), str(path), "exec"), space)
    return {name: space[name] for name in names}


class Sglang:
    """SGLang's loader of ``--init-expert-location``, with the settings that it asks for."""

    def __init__(self, location: ModuleType, settings: SimpleNamespace, parallel: SimpleNamespace) -> None:
        self._location, self._settings, self._parallel = location, settings, parallel

    def load(self, file: Path, *, redundant: int, ranks: int, nodes: int, rank: int = 0) -> Any:
        """Return what every process of SGLang derives from a file."""
        self._settings.init_expert_location = str(file)
        self._settings.ep_num_redundant_experts = redundant
        self._parallel.ep_size = self._parallel.tp_size = ranks
        self._parallel.nnodes = nodes
        config = SimpleNamespace(hf_config=None)
        return self._location.compute_initial_expert_location_metadata(config, moe_ep_rank=rank)


@contextmanager
def sglang(version: str, layers: int, experts: int) -> Iterator[Sglang]:
    """Load SGLang's expert_location.py for a model of so many layers, dense ones included."""
    folder = source_of("sglang", version)
    settings = SimpleNamespace(
        init_expert_location=None,
        ep_num_redundant_experts=0,
        ep_dispatch_algorithm="static",
        moe_a2a_backend="deepep",
        ep_join_mode=None,
        eplb_algorithm="auto",
    )
    parallel = SimpleNamespace(ep_size=1, nnodes=1, elastic_ep_initial_size=None, tp_size=1)
    context = stub(
        get_exec=lambda: SimpleNamespace(moe=settings),
        get_parallel=lambda: parallel,
        get_device=lambda: SimpleNamespace(device="cpu"),
        get_resources=lambda: SimpleNamespace(expert_location_metadata=None),
    )
    elastic = stub(elastic_expanded_world_enabled=lambda: False, ElasticEPStateManager=None)
    loader = stub()
    with modules(
        sglang=stub(),
        sglang__srt=stub(),
        sglang__srt__runtime_context=context,
        sglang__srt__elastic_ep=stub(),
        sglang__srt__elastic_ep__elastic_ep=elastic,
        sglang__srt__model_loader=loader,
    ):
        path = folder / "sglang" / "srt" / "eplb" / "expert_location.py"
        location = load_file("sglang.srt.eplb.expert_location", path)

        class Model:
            @staticmethod
            def get_model_config_for_expert_location(_config: Any) -> Any:
                return location.ModelConfigForExpertLocation(layers, experts, None)

        loader.get_model_architecture = lambda _config: (Model, None)  # type: ignore[attr-defined]
        yield Sglang(location, settings, parallel)


@contextmanager
def vllm(version: str) -> Iterator[SimpleNamespace]:
    """Load vLLM's EPLB policies and migration scheduler, and the functions that derive maps from a plan."""
    folder = source_of("vllm", version) / "vllm"
    import torch

    eplb = folder / "distributed" / "eplb"
    with modules(
        vllm=stub(folder),
        vllm__config=stub(),
        vllm__config__parallel=stub(EPLBPolicyOption=typing.Literal["default"]),
        vllm__distributed=stub(),
        vllm__distributed__eplb=stub(eplb),
    ):
        policy = importlib.import_module("vllm.distributed.eplb.policy")
        sys.modules["vllm.distributed.eplb"].policy = policy  # type: ignore[attr-defined]
        maps = functions_of(eplb / "eplb_state.py", {"compute_logical_maps"}, torch=torch)
        yield SimpleNamespace(
            folder=folder,
            policy=policy,
            scheduler=importlib.import_module("vllm.distributed.eplb.migration_scheduler"),
            compute_logical_maps=maps["compute_logical_maps"],
        )


def ascend(version: str) -> SimpleNamespace:
    """Run vllm-ascend's functions that read a static map; the module itself asks for NPUs."""
    import collections

    path = source_of("vllm-ascend", version) / "vllm_ascend" / "eplb" / "core" / "eplb_utils.py"
    import torch

    names = {"expert_file_to_tensor", "generate_log2phy_map"}
    logger = logging.getLogger("vllm")
    given = {"json": json, "torch": torch, "defaultdict": collections.defaultdict, "logger": logger}
    return SimpleNamespace(**functions_of(path, names, **given))
