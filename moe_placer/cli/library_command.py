"""``moe-placer library``: instances with the best placement and bound known of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from moe_placer.cli import log
from moe_placer.cli.export_command import FORMATS
from moe_placer.cli.json_text import as_json
from moe_placer.cli.options import json_option

if TYPE_CHECKING:
    from moe_placer.cli.results.library import LibraryEntry, LibraryResult
    from moe_placer.instance import Instance
    from moe_placer.library import Library, Recheck, Record
    from moe_placer.placement import Placement

__all__ = ["library"]

Command = TypeVar("Command", bound=Callable[..., Any])

_folder_option = click.option(
    "--library",
    "folder",
    metavar="DIR",
    type=click.Path(path_type=Path),
    default=Path("library"),
    show_default=True,
    envvar="MOE_PLACER_LIBRARY",
    show_envvar=True,
    help="The library: records/ and placements/.",
)
_recordings_option = click.option(
    "--recordings",
    metavar="DIR",
    type=click.Path(path_type=Path),
    envvar="MOE_PLACER_TRACES",
    show_envvar=True,
    help="Recordings that are not committed; instances that need one are skipped without it.",
)
_name_argument = click.argument("name")


@click.group()
def library() -> None:
    """Instances that methods are compared on: the best placement and the best bound known of each.

    docs/library.md has the table, and the rule for submissions.
    """


@library.command(name="list")
@_folder_option
@json_option
def list_(folder: Path, json_: bool) -> None:
    """List the instances: family, status, best value, bound, gap."""
    from moe_placer.library import open_library

    records = open_library(folder).records.values()
    if json_:
        click.echo(as_json(_result([_entry(record) for record in records])))
        return
    width = max(len(record.name) for record in records)
    kinds = max(len(record.family) for record in records)
    for record in records:
        best, bound = (None if part is None else part.value for part in (record.best, record.bound))
        figures = f"{_figure(best):>14}  {_figure(bound):>14}  {_share(record.gap):>8}"
        click.echo(f"{record.name:<{width}}  {record.family:<{kinds}}  {record.status:<8}{figures}")
    counts = Counter(record.status for record in records)
    numbers = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    click.echo(f"{len(records)} instances: {numbers}")


@library.command()
@_name_argument
@_folder_option
@json_option
def show(name: str, folder: Path, json_: bool) -> None:
    """Show what is known of the instance NAME, and why it is in the library."""
    from moe_placer.experiments.best_known import read_best_known
    from moe_placer.library import open_library

    record = open_library(folder).record(name)
    if json_:
        click.echo(as_json(_result([_entry(record)])))
        return
    click.echo(f"{record.name} ({record.family}): {record.reason}")
    click.echo(f"  status      {record.status}, gap {_share(record.gap)}")
    for what, part in (("best value", record.best), ("bound", record.bound)):
        if part is None:
            click.echo(f"  {what:<11} none")
            continue
        click.echo(f"  {what:<11} {part.value:,.1f}, by {part.solver} {part.version} on {part.date}")
    if record.bound is not None:
        click.echo(f"  proof       {record.bound.proof}")
    if record.migration is not None:
        click.echo(f"  moves       at most {record.migration.max_moves} from the old plan, `get` writes it")
    for entry in read_best_known(folder / "reported.yaml"):
        if entry["instance"] == name:
            value, report = entry["objective"]["value"], entry["objective"]["report"]
            click.echo(f"  reported    {value:,.1f} in reports/{report}, of which no certificate is kept")
    for needed in record.recordings:
        click.echo(f"  needs       {needed.file}, from {needed.source}")
    for command in _commands(record):
        click.echo(f"  make it by  {command}")


@library.command()
@_name_argument
@click.option(
    "-o", "--output", metavar="DIR", type=click.Path(path_type=Path), default=Path(), help="Folder to write to.  [.]"
)
@_folder_option
@json_option
def get(name: str, output: Path, folder: Path, json_: bool) -> None:
    """Write the instance NAME as a file of its own, and the best placement known beside it."""
    import yaml

    from moe_placer.files import write_atomically
    from moe_placer.library import open_library

    opened = open_library(folder)
    record = opened.record(name)
    files = [output / f"{name}.yaml"]
    head = f"# {record.reason}\n"
    write_atomically(files[0], head + yaml.safe_dump(opened.content(record), sort_keys=False, allow_unicode=True))
    known = {"placement": record.best, "certificate": record.bound}
    named = {what: part.placement for what, part in known.items() if part is not None}
    if record.migration is not None:
        named["current"] = record.migration.current
    for what, sha256 in named.items():
        files.append(output / f"{name}.{what}.json")
        opened.placement(record, sha256).write(files[-1])
    _say_files(record, files, json_)


@library.command()
@click.argument("names", nargs=-1)
@_recordings_option
@_folder_option
@json_option
def check(names: tuple[str, ...], recordings: Path | None, folder: Path, json_: bool) -> int:
    """Derive every value, bound, proof and status anew from the files, by the verifier alone; NAMES: only of these.

    Exit code 5 if a record says anything else.
    """
    from moe_placer.errors import VerificationError
    from moe_placer.library import open_library, recheck_record

    opened = open_library(folder)
    done = []
    for record in map(opened.record, names or opened.records):
        done.append((record, recheck_record(opened, record, recordings)))
        if not json_:
            _say_check(done[-1][1])
    wrong = any(found.verdict == "wrong" for _, found in done)
    if json_:
        click.echo(as_json(_result([_entry(record, found) for record, found in done])))
    else:
        counts = Counter(found.verdict for _, found in done)
        click.echo(", ".join(f"{counts[verdict]} {verdict}" for verdict in ("good", "wrong", "skipped")))
    return VerificationError.exit_code if wrong else 0


@library.command()
@click.argument("placement", type=click.Path(path_type=Path))
@click.option("--as", "name", metavar="NAME", help="The instance, where the file does not name it.")
@click.option("--format", "form", type=click.Choice(FORMATS), help="PLACEMENT is a file of this engine (needs --as).")
@_recordings_option
@_folder_option
@json_option
def submit(
    placement: Path, name: str | None, form: str | None, recordings: Path | None, folder: Path, json_: bool
) -> None:
    """Verify PLACEMENT, say by how much it beats the best known, and write the record for a pull request.

    Better values and better bounds are entered, each for itself. Nothing is written where neither is better.
    """
    from moe_placer.errors import InputError, Mistake
    from moe_placer.library import open_library, submit_placement

    opened = open_library(folder)
    record = opened.record(name or _name_in(opened, placement, form))
    try:
        instance = opened.instance(record, recordings)
    except FileNotFoundError as missing:
        raise InputError(Mistake(str(missing), "--recordings DIR with this file", file=placement)) from None
    done = submit_placement(opened, record, instance, _read(placement, form, instance), _today())
    if json_:
        content = _result([_entry(done.after)], done.files)
        click.echo(as_json({**content, "submitted": {"value": done.value, "bound": done.bound}}))
        return
    click.echo(f"{record.name}: value {done.value:,.1f}, bound {done.bound:,.1f}, verified")
    for what, now, before, sign in (
        ("value", done.after.best, done.before.best, -1),
        ("bound", done.after.bound, done.before.bound, 1),
    ):
        if now == before or now is None:
            known = "none" if before is None else f"{before.value:,.1f} by {before.solver}"
            click.echo(f"  {what}: not better than the best known ({known})")
        elif before is None:
            click.echo(f"  {what}: the first")
        else:
            by = sign * (now.value / before.value - 1) if before.value else 0.0
            click.echo(f"  {what}: {by:.4%} better than {before.value:,.1f} by {before.solver}")
    for file in done.files:
        log.info(f"Written: {file}", file=str(file))


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


def _name_in(opened: Library, file: Path, form: str | None) -> str:
    """Return the name of the instance that a placement file says it is for."""
    from moe_placer.errors import UsageError
    from moe_placer.placement import load_placement

    if form is not None:
        raise UsageError("an engine's file does not name its instance: give --as NAME")
    name: str = load_placement(file).instance.name
    if name not in opened.records:
        raise UsageError(f"{file} is for {name!r}, which is not in the library: give --as NAME")
    return name


def _read(file: Path, form: str | None, instance: Instance) -> Placement:
    from moe_placer.placement import load_placement

    if form is None:
        return load_placement(file)
    from moe_placer.engines.plans.export import check_file
    from moe_placer.engines.plans.plan import read_deployment
    from moe_placer.engines.plans.to_placement import placement_from_plan
    from moe_placer.errors import UsageError
    from moe_placer.traffic import load_traffic

    checked = check_file(form, file, instance)
    if checked.plan is None:
        raise UsageError(f"{form} holds no plan")
    traffic, deployment = load_traffic(instance), read_deployment(instance)
    return placement_from_plan(instance, traffic, checked.plan, deployment, form, checked.raw)[0]


def _say_check(found: Recheck) -> None:
    text = "; ".join(found.problems) or f"value {_figure(found.value)}, bound {_figure(found.bound)}, {found.status}"
    click.echo(f"{found.name}: {found.verdict}. {text}")


def _say_files(record: Record, files: list[Path], json_: bool) -> None:
    if json_:
        click.echo(as_json(_result([_entry(record)], tuple(files))))
        return
    for needed in record.recordings:
        click.echo(f"needs {needed.file}, from {needed.source}: give it with --trace")
    for command in _commands(record):
        click.echo(f"make it by: {command}")
    for file in files:
        log.info(f"Written: {file}", file=str(file))


def _commands(record: Record) -> list[str]:
    """Return what fetches and converts a record's recordings, each command once."""
    return list(dict.fromkeys(command for needed in record.recordings for command in needed.commands))


def _result(entries: list[LibraryEntry], files: tuple[Path, ...] = ()) -> LibraryResult:
    return {"schema": "moe-placer/library/1", "entries": entries, "files": [str(file) for file in files]}


def _entry(record: Record, found: Recheck | None = None) -> LibraryEntry:
    best, bound = record.best, record.bound
    entry: LibraryEntry = {
        "name": record.name,
        "family": record.family,
        "reason": record.reason,
        "status": record.status,
        "value": None if best is None else best.value,
        "value_by": None if best is None else best.solver,
        "bound": None if bound is None else bound.value,
        "bound_by": None if bound is None else bound.solver,
        "proof": None if bound is None else bound.proof,
        "gap": record.gap,
        "recordings": [needed.file for needed in record.recordings],
        "recording_commands": _commands(record),
        "max_moves": None if record.migration is None else record.migration.max_moves,
    }
    if found is not None:
        entry |= {"verdict": found.verdict, "problems": list(found.problems)}
    return entry


def _figure(value: float | None) -> str:
    return "none" if value is None else f"{value:,.1f}"


def _share(gap: float | None) -> str:
    return "not known" if gap is None else f"{gap:.3%}"
