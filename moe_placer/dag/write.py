"""Writes the drawings of a placement, each as .dot, .json and .svg, and the large ones as pages too."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from moe_placer.dag.page import to_page
from moe_placer.dag.texts import to_dot, to_json
from moe_placer.dag.views import VIEWS
from moe_placer.errors import UsageError
from moe_placer.files import write_atomically
from moe_placer.instance import Instance
from moe_placer.placement import Placement
from moe_placer.traffic.recording import Traffic

__all__ = ["write_dags"]


def write_dags(
    instance: Instance,
    placement: Placement,
    traffic: Traffic,
    directory: Path,
    only: Collection[str] | None = None,
    *,
    wrote: Callable[[Path], None] | None = None,
) -> tuple[Path, ...]:
    """Write ``<view>.dot``, ``.json`` and ``.svg`` for every view, or for some; the same input gives the same bytes.

    Large views get an ``.html`` too: the drawing with search, zoom and details, in one file.

    Parameters
    ----------
    directory : Path
        Made where it does not exist; files of these names are replaced, each whole.
    only : collection of str, optional
        Names of views, of ``moe_placer.dag.VIEWS``.
    wrote : callable, optional
        Told of every file as soon as it is there.

    Returns
    -------
    tuple of Path
        What was written, in order.

    Raises
    ------
    UsageError
        There is no view of that name.
    InputError
        Placement and traffic do not fit the instance, or the directory cannot be written to.
    """
    unknown = sorted(set(only or ()) - set(VIEWS))
    if unknown:
        raise UsageError(f"no DAG is called {unknown[0]!r}; there are {', '.join(VIEWS)}")
    written: list[Path] = []
    for view in VIEWS.values():
        if only is not None and view.name not in only:
            continue
        dag = view.build(instance, placement, traffic)
        texts = {"dot": to_dot(dag, view.name), "json": to_json(dag, view.name), "svg": view.draw(dag)}
        if view.page:
            texts["html"] = to_page(dag, view.name, texts["svg"])
        for suffix, text in texts.items():
            path = Path(directory) / f"{view.name}.{suffix}"
            write_atomically(path, text)
            written.append(path)
            if wrote is not None:
                wrote(path)
    return tuple(written)
