"""What ``moe-placer init`` does, as a function."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from moe_placer.engines.init.draft import Draft, Wishes, draft_instance
from moe_placer.engines.init.model_config import read_model_config
from moe_placer.engines.init.recorded_traffic import inspect_recordings
from moe_placer.engines.init.text import instance_text
from moe_placer.engines.topology.topology import Topology
from moe_placer.errors import InputError, Mistake
from moe_placer.files import write_atomically
from moe_placer.instance import Instance
from moe_placer.traffic import load_traffic

__all__ = ["init"]


def init(
    model: str | Path,
    recordings: Sequence[str | Path],
    output: str | Path,
    wishes: Wishes | None = None,
    *,
    topology: Topology | None = None,
    dtype: str | None = None,
    force: bool = False,
) -> Draft:
    """Write a valid instance from a model's config, recordings of its routing, and what is known of the cluster.

    Parameters
    ----------
    model : path
        The model's Hugging Face config.json.
    recordings : sequence of paths
        What `import_recording` wrote, one per domain.
    output : path
        The instance to write (.yaml); recordings are named relative to it.
    wishes : Wishes, optional
        GPUs, slots, engine and so on; what is absent is taken from the inputs, or assumed and listed.
    topology : Topology, optional
        The cluster's network, as `read_topologies` reads it from a cluster's own files.
    dtype : str, optional
        Precision instead of the config's.
    force : bool
        Whether a file that is there may be replaced.

    Returns
    -------
    Draft
        The instance's content, its comments, and what was assumed.

    Raises
    ------
    InputError
        An input is wrong, or inputs, wishes and the engine's rules contradict each other; nothing is written.
    """
    path = Path(output)
    if path.exists() and not force:
        raise InputError(Mistake("a file that is there", "another --output, or --force to replace it", file=path))
    asked, named = wishes or Wishes(), [Path(recording) for recording in recordings]
    config = read_model_config(Path(model), dtype)
    traffic = inspect_recordings(named, config, tokens=asked.dispatch not in {None, "per-expert"})
    draft = draft_instance(config, traffic, topology, asked, path.parent)
    files = [str(file.absolute()) for file in named]
    load_traffic(Instance.model_validate({**draft.data, "traffic": {**draft.data["traffic"], "files": files}}))
    write_atomically(path, instance_text(draft))
    return draft
