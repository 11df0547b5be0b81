"""``moe-placer schema``."""

from __future__ import annotations

import click

__all__ = ["SCHEMAS", "schema"]

# What `moe_placer.cli.results` has; it is not imported here, so that help answers at once.
SCHEMAS = (
    "instance",
    "placement",
    "import",
    "init",
    "solve",
    "replan",
    "follow",
    "watch",
    "verify",
    "evaluate",
    "gate",
    "screen",
    "inspect",
    "solvers",
    "dag",
    "schedule",
    "sweep",
    "compare",
    "split",
    "report",
    "plan-report",
    "export",
    "check-file",
    "library",
    "log",
)

EXAMPLES = """
\b
In an editor with YAML support, put this on the first line of an instance:
  # yaml-language-server: $schema=instance.schema.json
"""


@click.command(epilog=EXAMPLES)
@click.argument("which", type=click.Choice(["instance", "placement"]), required=False)
@click.option(
    "--of",
    type=click.Choice(SCHEMAS),
    help="Also: what a command prints with --json; `log` is a line of --log json.  [instance]",
)
def schema(which: str | None, of: str | None) -> None:
    """Print the JSON Schema of instance or placement files, or of any command's JSON, for editors and pipelines."""
    from moe_placer.cli.json_text import as_json
    from moe_placer.cli.results import result_schema
    from moe_placer.errors import UsageError

    if which and of:
        raise UsageError(f"{which} and --of {of} are given, expected one of them")
    click.echo(as_json(result_schema(of or which or "instance")))
