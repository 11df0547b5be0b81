"""Options of ``moe-placer replan`` for failed, drained, slow and added hardware, and the report of what was lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from moe_placer.cli.options import counted
from moe_placer.cli.what_if_options import slow_gpus_of
from moe_placer.errors import UsageError

if TYPE_CHECKING:
    from moe_placer.cli.results.replanning import ReplanLoss
    from moe_placer.replan.change import Change
    from moe_placer.replan.restore import Loss

__all__ = ["build_change", "change_options", "loss_content", "loss_lines"]

_SHOWN = 8  # experts that are named
_MOST = 100_000  # ids that one option may list

Command = TypeVar("Command", bound=Callable[..., Any])


def change_options(command: Command) -> Command:
    """Add the options to a command, as the arguments of `build_change`."""
    for option in (
        click.option(
            "--slow-gpu",
            "slow_gpus",
            multiple=True,
            metavar="ID=FACTOR",
            help="This GPU takes so many times as long to compute: it gets less to do. Repeatable.",
        ),
        click.option("--add-nodes", "added_nodes", default=0, metavar="N", help="Nodes that came, after the last one."),
        click.option("--drain", "drained", metavar="NODES", help="Nodes to empty: they send what they hold, then go."),
        click.option("--failed-nodes", metavar="NODES", help="Nodes that failed with all that they held: 3,8-11."),
        click.option("--failed-gpus", metavar="GPUS", help="GPUs that failed with all that they held: 17,40-47."),
    ):
        command = option(command)
    return command


def build_change(
    failed_gpus: str | None, failed_nodes: str | None, drained: str | None, added_nodes: int, slow_gpus: Sequence[str]
) -> Change:
    """Build the change of the cluster that the options describe.

    Parameters
    ----------
    failed_gpus, failed_nodes, drained : str or None
        Ids and ranges of ids: ``3,8-11``.
    added_nodes : int
    slow_gpus : sequence of str
        ``ID=FACTOR``.

    Raises
    ------
    UsageError
        Text of another form, or something that is named twice.
    """
    from moe_placer.replan.change import Change

    return Change(
        failed=_ids("--failed-gpus", failed_gpus),
        failed_nodes=_ids("--failed-nodes", failed_nodes),
        drained_nodes=_ids("--drain", drained),
        added_nodes=added_nodes,
        slow=slow_gpus_of(slow_gpus),
    )


def loss_lines(loss: Loss | None) -> Iterator[str]:
    """Say what went out of service, before anything else is said."""
    if loss is None:
        return
    if loss.gpus or loss.drained:
        parts = [f"{counted(len(loss.gpus), 'GPU')} failed"] if loss.gpus else []
        parts += [f"{counted(len(loss.drained), 'GPU')} drained"] if loss.drained else []
        yield f"Out of service: {loss.replicas:,} replicas ({', '.join(parts)})."
    if loss.gone:
        named = [f"expert {expert} of layer {layer}" for layer, expert in loss.gone[:_SHOWN]]
        more = f", and {len(loss.gone) - _SHOWN:,} more" if len(loss.gone) > _SHOWN else ""
        yield f"No GPU has them any more, so they are read from storage first: {', '.join(named)}{more}."
    came = f"{loss.restored:,} replicas come back" if loss.restored else "Nothing has to come back"
    went = f", {loss.dropped:,} go, since slots have become fewer" if loss.dropped else ""
    yield f"{came}{went}; then load is balanced."


def loss_content(loss: Loss | None) -> ReplanLoss | None:
    """Return what ``--json`` prints of the loss."""
    if loss is None:
        return None
    return {
        "failed_gpus": list(loss.gpus),
        "drained_gpus": list(loss.drained),
        "replicas": loss.replicas,
        "gone": [{"layer": layer, "expert": expert} for layer, expert in loss.gone],
        "restored": loss.restored,
        "dropped": loss.dropped,
    }


def _ids(option: str, text: str | None) -> tuple[int, ...]:
    """Read ids and ranges of ids."""
    ids: list[int] = []
    for part in (text or "").split(",") if text is not None else ():
        first, dash, last = part.strip().partition("-")
        if not (first.isdecimal() and (last.isdecimal() or not dash)) or len(first) > 9 or len(last) > 9:
            raise UsageError(f"{option} is {text!r}, expected ids and ranges, such as 3,8-11")
        low, high = int(first), int(last or first)
        if high < low or high - low >= _MOST:
            raise UsageError(f"{option} has the range {part.strip()!r}, expected one from a smaller id to a larger")
        ids += range(low, high + 1)
    if len(set(ids)) < len(ids):
        raise UsageError(f"{option} names {next(one for one in ids if ids.count(one) > 1)} twice")
    return tuple(ids)
