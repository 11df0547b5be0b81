"""DAGs have the cost of every NIC, and files that say otherwise are reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from builders import ONE_LAYER, recomputed, tiny_instance, tiny_tokens

from moe_placer.dag.drawing_files import write_dags
from moe_placer.limits import Limits
from moe_placer.solve.solve import solve
from moe_placer.verifier.dags import verify_dags


@pytest.mark.parametrize(("receive", "per_node"), [("source-rail", 2), ("destination-gpu", 1), ("destination-gpu", 4)])
def test_files_have_the_costs_that_the_verifier_counts(receive: str, per_node: int, tmp_path: Path) -> None:
    nics: dict[str, Any] = {"per_node": per_node, "gb_per_s": 400.0 / per_node, "receive": receive}
    instance = tiny_instance(model=ONE_LAYER, cluster={"nics": nics})
    traffic = tiny_tokens(instance, per_node)
    placement = solve(instance, traffic, solver="greedy", limits=Limits(bounds=False)).placement
    write_dags(instance, placement, traffic, tmp_path)
    assert [check.violations for check in verify_dags(instance, placement, tmp_path, traffic)] == [()] * 4

    file = tmp_path / "detailed_expert_dag.json"
    content = json.loads(file.read_text())
    found = recomputed(instance, [[list(gpus) for gpus in row] for row in placement.gpu], traffic)
    (costs,) = content["graph"]["links"].values()
    assert costs == pytest.approx(dict(zip(found.links, found.cost[0].tolist(), strict=True)))

    nic = next(link for link in found.links if link.startswith("node2/nic"))
    text = file.read_text()
    costs[nic] += 1.0
    file.write_text(json.dumps(content))
    wrong = [one for check in verify_dags(instance, placement, tmp_path, traffic) for one in check.violations]
    assert "dag-traffic" in {violation.rule for violation in wrong}
    assert text != file.read_text()
