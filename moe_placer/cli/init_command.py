"""``moe-placer init``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moe_placer.cli import log
from moe_placer.cli.json_text import as_json
from moe_placer.cli.options import engine_option, json_option

if TYPE_CHECKING:
    from moe_placer.cli.results.engine_files import InitResult
    from moe_placer.engines.topology import Topology

__all__ = ["CLUSTER_OPTIONS", "init"]

EXAMPLES = """
\b
Examples:
  moe-placer init --model config.json --recording recording.npz --gpus 64 --gpu h100 -o instance.yaml
  moe-placer init --model config.json --recording recording.npz --topology topology.conf \\
    --node-gb-per-s 400 --oversubscription 2 --slots-per-gpu 3 --engine sglang -o instance.yaml
"""

_PATH = click.Path(path_type=Path)
_COUNT = click.IntRange(min=1)
_POSITIVE = click.FloatRange(min=0, min_open=True)

_FILES: tuple[Callable[[Any], Any], ...] = (
    click.option("--model", "config", required=True, metavar="FILE", type=_PATH, help="Hugging Face config.json."),
    click.option(
        "--recording",
        "recordings",
        required=True,
        multiple=True,
        metavar="FILE",
        type=_PATH,
        help="What `moe-placer import` wrote, one per domain. Repeatable.",
    ),
    click.option("-o", "--output", required=True, metavar="FILE", type=_PATH, help="The instance to write (.yaml)."),
    click.option("--force", is_flag=True, help="Replace a file that is there."),
    click.option("--name", metavar="TEXT", help="Name of the instance.  [model, GPUs]"),
)
CLUSTER_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    engine_option,
    click.option("--gpus", type=_COUNT, metavar="N", help="GPUs in all."),
    click.option("--gpus-per-node", type=_COUNT, metavar="N", help="GPUs of a node.  [the GPU's usual node]"),
    click.option(
        "--gpu",
        type=click.Choice(["a100", "h100", "h20", "h200", "b200", "gb200", "mi300x"], case_sensitive=False),
        help="Kind of GPU: memory, peaks and bandwidths of its data sheet, which the file names.  [h100]",
    ),
    click.option(
        "--system",
        metavar="FILE",
        type=_PATH,
        help="Instead of --gpu: aiconfigurator's file of a GPU and its node, such as systems/h100_sxm.yaml.",
    ),
    click.option("--slots-per-gpu", type=_COUNT, metavar="N", help="Experts of one layer that a GPU holds."),
    click.option(
        "--redundant-slots",
        type=click.IntRange(min=0),
        metavar="N",
        help="Replicas beyond one of each expert, in every layer; instead of --slots-per-gpu.",
    ),
    click.option("--attention-tp", type=_COUNT, metavar="N", help="GPUs that share attention.  [1]"),
    click.option("--tokens-per-gpu", type=_POSITIVE, metavar="N", help="Tokens that start on a GPU in a step.  [1024]"),
    click.option(
        "--dtype", type=click.Choice(["fp32", "bf16", "fp16", "fp8", "fp4"]), help="Precision, instead of the config's."
    ),
    click.option(
        "--dispatch",
        type=click.Choice(["per-expert", "per-gpu", "per-node"]),
        help="What a token is sent once for, between nodes; all but per-expert need whole tokens.  [per-expert]",
    ),
    click.option("--node-gb-per-s", type=_POSITIVE, metavar="X", help="A node's NICs together, one direction, GB/s."),
    click.option("--nodes-per-leaf", type=_COUNT, metavar="N", help="Nodes on each leaf switch."),
    click.option("--spines", type=_COUNT, metavar="N", help="Spine switches."),
    click.option("--oversubscription", type=_POSITIVE, metavar="X", help="Leaf down capacity / leaf up capacity."),
)
_TOPOLOGY: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "--topology",
        "topologies",
        multiple=True,
        metavar="FILE",
        type=_PATH,
        help="The network: Slurm's topology.conf or .yaml, Topograph's graph or Kubernetes nodes (.json), "
        "ibnetdiscover; or a node's inside: NCCL's .xml; or one of each.",
    ),
    click.option("--hosts", metavar="LIST", help="Nodes of the topology to use, such as node[01-16].  [all]"),
    click.option("--levels", metavar="KEYS", help="Kubernetes labels that name a node's switches, the closest first."),
    click.option("--leaf-level", type=_COUNT, metavar="N", help="Switches to take as leaves, from the nodes up."),
)


def _topology(
    files: tuple[Path, ...], hosts: str | None, levels: str | None, leaf_level: int | None
) -> Topology | None:
    """Read the topology that is given, or none."""
    from moe_placer.engines.topology import Choice, expand, read_topologies
    from moe_placer.errors import InputError, Mistake, UsageError

    if not files:
        if hosts or levels or leaf_level:
            raise UsageError("--hosts, --levels and --leaf-level choose from a topology: they need --topology FILE")
        return None
    try:
        chosen = expand(hosts) if hosts else []
    except ValueError as error:
        raise InputError(Mistake(str(error), "a host list such as node[01-16]", "--hosts")) from None
    if len(set(chosen)) < len(chosen):
        raise InputError(Mistake("a host twice", "each host once", "--hosts"))
    return read_topologies(files, Choice(chosen, leaf_level, levels.split(",") if levels else ()))


def _init_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_FILES + CLUSTER_OPTIONS + _TOPOLOGY):
        command = option(command)
    return command


@click.command(epilog=EXAMPLES)
@_init_options
@json_option
def init(
    config: Path,
    recordings: tuple[Path, ...],
    output: Path,
    force: bool,
    dtype: str | None,
    topologies: tuple[Path, ...],
    hosts: str | None,
    levels: str | None,
    leaf_level: int | None,
    dispatch: str | None,
    system: Path | None,
    json_: bool,
    **wishes: Any,
) -> None:
    """Write a valid instance from a model's config, recordings of its routing, and what is known of the cluster.

    Every field says where it is from; what nobody said is assumed, and listed. What contradicts itself or the engine's
    rules is refused with the option that can change it: 128 experts and 32 redundant slots on 64 GPUs, for instance.
    """
    from moe_placer.engines.init import Wishes, read_system
    from moe_placer.engines.init import init as write

    topology = _topology(topologies, hosts, levels, leaf_level)
    asked = Wishes(**{**wishes, "dispatch": dispatch, "system": read_system(system) if system else None})
    draft = write(config, recordings, output, asked, topology=topology, dtype=dtype, force=force)
    if json_:
        content: InitResult = {
            "schema": "moe-placer/init/1",
            "instance": draft.data,
            "assumed": draft.assumed,
            "file": str(output),
        }
        click.echo(as_json(content))
        return
    placement, cluster = draft.data["placement"], draft.data["cluster"]
    gpus = cluster["nodes"] * cluster["gpus_per_node"]
    click.echo(f"{draft.data['name']}: {gpus} GPUs, {placement['slots_per_gpu']} slots on each, "
               f"{placement['replicas']['redundant_slots']} replicas beyond one of each expert")  # fmt: skip
    click.echo("Assumed, or not in an instance:")
    for text in draft.assumed:
        click.echo(f"  {text}")
    log.info(f"Written: {output}", file=str(output))
