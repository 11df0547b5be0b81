"""Which host runs which rank: hostfile, rankfile, Kubernetes labels; and names of hosts as people write them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from engine_plans import engine_instance
from hypothesis import given
from hypothesis import strategies as st

from moe_placer.cli.export_command import LAUNCHERS as OFFERED
from moe_placer.engines.launchers.hosts import expand_hosts, find_hosts, read_hosts
from moe_placer.engines.launchers.launch import LAUNCHERS, plan_launch
from moe_placer.engines.plans.plan import read_deployment
from moe_placer.errors import InputError, UsageError

HOSTS = ("n3", "n1", "n4", "n2")
DEPLOYMENT = read_deployment(engine_instance())  # 4 nodes of 2 GPUs


def test_every_launcher_is_offered() -> None:
    assert OFFERED == LAUNCHERS


def test_slurm_runs_task_i_on_line_i() -> None:
    by_node = plan_launch("slurm", DEPLOYMENT, HOSTS, "sglang")
    assert by_node.content == "n3\nn1\nn4\nn2\n"
    assert "--nodes=4 --ntasks=4 --distribution=arbitrary --nodelist=n3,n1,n4,n2" in by_node.usage[0]
    by_gpu = plan_launch("slurm", DEPLOYMENT, HOSTS, "trtllm")
    assert by_gpu.content == "n3\nn3\nn1\nn1\nn4\nn4\nn2\nn2\n"


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_usage_names_the_file_and_nothing_else_changes(launcher: str, tmp_path: Path) -> None:
    file = tmp_path / "plan of today.json"
    lines = plan_launch(launcher, DEPLOYMENT, HOSTS, "trtllm", 8).usage_of(file)
    assert sum(shlex.quote(str(file)) in line for line in lines) == 1
    assert not any("{" in line for line in lines if "nodeSelector" not in line)
    if launcher == "slurm":
        words = shlex.split(lines[0])
        assert words[:2] == [f"SLURM_HOSTFILE={file}", "srun"]


def test_mpi_gives_every_rank_its_host_and_its_cores() -> None:
    launch = plan_launch("mpi", DEPLOYMENT, HOSTS, "trtllm", cores_per_node=9)
    assert launch.content.splitlines()[:3] == [
        "rank 0=n3 slot=0-3",
        "rank 1=n3 slot=4-7",
        "rank 2=n1 slot=0-3",
    ]
    assert len(launch.content.splitlines()) == 8
    assert plan_launch("mpi", DEPLOYMENT, HOSTS, "vllm", 1).content.splitlines()[3] == "rank 3=n2 slot=0"
    for cores in (None, 1):
        with pytest.raises(UsageError, match="--cores-per-node"):
            plan_launch("mpi", DEPLOYMENT, HOSTS, "trtllm", cores)


def test_kubernetes_labels_nodes_and_tells_pods_their_rank() -> None:
    launch = plan_launch("kubernetes", DEPLOYMENT, ("1", "no", "4e3", "n2"), "sglang")
    documents = list(yaml.safe_load_all(launch.content))
    nodes = [document for document in documents if document["kind"] == "Node"]
    assert [node["metadata"]["name"] for node in nodes] == ["1", "no", "4e3", "n2"]  # text, whatever YAML makes of it
    assert [node["metadata"]["labels"]["moe-placer/node-rank"] for node in nodes] == ["0", "1", "2", "3"]
    (config,) = [document for document in documents if document["kind"] == "ConfigMap"]
    assert config["data"] == {"1": "0", "no": "1", "4e3": "2", "n2": "3"}
    assert {node["metadata"]["labels"]["moe-placer/plan"] for node in nodes} == {config["metadata"]["name"]}


def test_failed_nodes_are_left_out() -> None:
    instance = engine_instance(nodes=5, placement={"slots_per_gpu": 2, "failed_gpus": [2, 3]})
    launch = plan_launch("slurm", read_deployment(instance), ("a", "b", "c", "d", "e"), "vllm")
    assert launch.content.split() == ["a", "c", "d", "e"]


def test_short_forms_keep_zeros_and_order() -> None:
    assert expand_hosts("a[08-10,3]b, gpu7 x[1-2]y[0-1]") == [
        "a08b", "a09b", "a10b", "a3b", "gpu7", "x1y0", "x1y1", "x2y0", "x2y1",
    ]  # fmt: skip


@given(st.integers(0, 999), st.integers(0, 40), st.integers(1, 4))
def test_ranges_are_what_slurm_writes(first: int, more: int, width: int) -> None:
    text = f"n[{str(first).zfill(width)}-{first + more}]"
    hosts = expand_hosts(text)
    assert len(hosts) == more + 1
    assert [int(host[1:]) for host in hosts] == list(range(first, first + more + 1))
    assert all(len(host) >= 1 + width for host in hosts)


@pytest.mark.parametrize(
    "text", ["a[1-", "a]1[", "a[[1]]", "a[x]", "a[3-1]", "a[1-999999999]", "a b_", "-a", "a[]", "ä"]
)
def test_what_is_no_host_name_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"bracket|host name|range"):
        expand_hosts(text)


def test_a_host_file_must_name_every_node_once(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text("# rack 1\nn[1-2]\nn3  # spare\n\nn4\n")
    assert read_hosts(file, 4) == ("n1", "n2", "n3", "n4")
    for text, message in (("n1\nn1\n", "n1 twice"), ("n1\n", "1 host names, expected 2"), ("n1\n[\n", "hosts:2: ")):
        file.write_text(text)
        with pytest.raises(InputError, match=message):
            read_hosts(file, 2)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="UTF-8"):
        read_hosts(file, 2)


def test_hosts_are_a_file_or_a_list(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("n1\nn2\n")
    assert find_hosts(str(tmp_path / "hosts"), 2) == find_hosts("n[1-2]", 2) == find_hosts("n1,n2", 2) == ("n1", "n2")
    for text, message in (
        ("n[1-3]", "--hosts: found 3 host names, expected 2"),
        ("n1,n1", "--hosts: found host n1 twice"),
        ("n[1-", "--hosts: found no such file, and brackets that do not match"),
        ("hosts", "hosts: found no such file, expected 2 host names"),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            find_hosts(text, 2)
