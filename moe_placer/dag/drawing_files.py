"""Writes the drawings of a placement, each as .dot, .json and .svg, and the large ones as pages too."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from moe_placer.dag.checked_files import put_files
from moe_placer.dag.groups import lost_nodes
from moe_placer.dag.operation import Dag
from moe_placer.dag.page import to_page
from moe_placer.dag.texts import to_dot, to_json
from moe_placer.dag.thumbnail import to_thumbnail
from moe_placer.dag.views import VIEWS, View, count_tensors, part_of_all
from moe_placer.errors import UsageError
from moe_placer.instance import Instance
from moe_placer.placement import Placement
from moe_placer.traffic.recording import Traffic

__all__ = ["write_dags"]

MOST_TENSORS = 800_000  # beyond, a file would have more than the 400 MB that `verify` reads
MOST_MERGED_TENSORS = 3_000_000  # beyond, a graph that is merged before it is written would take more than 5 GB
PART_TENSORS = 200_000  # of the part of all layers that is written where all are too many
MOST_SVG_BYTES = 6_000_000  # beyond, an SVG is written without what only its page needs
_SMALL_SVG_BYTES = 150_000  # up to here, an SVG is its own thumbnail


def write_dags(
    instance: Instance,
    placement: Placement,
    traffic: Traffic,
    directory: Path,
    only: Collection[str] | None = None,
    *,
    thumbnails: bool = False,
    wrote: Callable[[Path], None] | None = None,
    note: Callable[[str], None] | None = None,
    check: Callable[[Path], None] | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> tuple[Path, ...]:
    """Write ``<view>.dot``, ``.json`` and ``.svg`` for every view, or for some; the same input gives the same bytes.

    Large views get an ``.html`` too: the drawing with search, zoom and details, in one file.

    Parameters
    ----------
    instance : Instance
    placement : Placement
    traffic : Traffic
        Routing statistics of the instance's sources.
    directory : Path
        Made where it does not exist; files of these names are replaced, each whole.
    only : collection of str, optional
        Names of views, of ``moe_placer.dag.VIEWS``.
    thumbnails : bool
        For a page that shows them small: a ``.png`` beside every large ``.svg``, which has no tooltips then.
    wrote : callable, optional
        Told of every file as soon as it is there.
    note : callable, optional
        Told what is left out because the deployment is too large, and what is larger than viewers like.
    check : callable, optional
        Given a folder with the files of one view before they go to ``directory``; what it raises keeps them from it.
    stopped : callable
        Asked now and then; once it says True, nothing more is drawn, and no view is written in part.

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
    Exception
        What ``check`` raises.
    """
    unknown = sorted(set(only or ()) - set(VIEWS))
    if unknown:
        raise UsageError(f"no DAG is called {unknown[0]!r}; there are {', '.join(VIEWS)}")
    tell = note if note is not None else lambda _text: None
    views = [view for view in VIEWS.values() if only is None or view.name in only]
    if any(view.whole for view in views):
        views = _that_can_be_read(views, instance, placement, traffic, tell)
    for node in lost_nodes(instance):
        tell(f"node {node} has no GPU that works; its tokens and links are counted all the same, so it is drawn whole")
    written: list[Path] = []
    for view in views:
        contents = _contents(view, view.build(instance, placement, traffic), tell, thumbnails)
        put = put_files(view.name, contents, Path(directory), check=check, wrote=wrote, stopped=stopped)
        if not put:
            break
        written += put
    return tuple(written)


def _that_can_be_read(
    views: list[View], instance: Instance, placement: Placement, traffic: Traffic, tell: Callable[[str], None]
) -> list[View]:
    """Take a part of all layers for what has too many tensors, or nothing where merging them is too much."""
    tensors = count_tensors(instance, placement, traffic)
    fitting: list[View] = []
    for view in views:
        most = MOST_MERGED_TENSORS if view.merged else MOST_TENSORS
        words = f"all layers have about {tensors:,} tensors, and it is written (and verified) up to {most:,}"
        if not view.whole or tensors <= most:
            fitting.append(view)
        elif view.merged:
            tell(f"{view.name} left out: {words}")
        else:
            part, shown = part_of_all(instance, placement, traffic, tensors, PART_TENSORS)
            fitting.append(part)
            tell(f"{part.name} has layers {shown[0]} to {shown[-1]} instead of {view.name}: {words}")
    return fitting


def _contents(view: View, dag: Dag, tell: Callable[[str], None], thumbnails: bool) -> Iterator[tuple[str, str | bytes]]:
    """Yield suffix and content of a view's files."""
    yield "dot", to_dot(dag, view.name)
    yield "json", to_json(dag, view.name)
    drawing = view.draw(dag)
    svg = drawing.svg()
    if thumbnails and len(svg.encode()) > _SMALL_SVG_BYTES:
        drawing.tips = False
        svg = drawing.svg()
        yield "png", to_thumbnail(drawing)
    if view.page and len(svg.encode()) > MOST_SVG_BYTES:  # the page has the details
        svg = view.draw(dag, lean=True).svg()
        if (size := len(svg.encode())) > MOST_SVG_BYTES:
            tell(f"{view.name}.svg has {size / 1e6:.1f} MB, which viewers may be slow to show; the .html is quicker")
    yield "svg", svg
    if view.page:
        yield "html", to_page(dag, view.name, drawing)
