"""``moe-placer schema``."""

from __future__ import annotations

import click

__all__ = ["schema"]


EXAMPLES = """
\b
In an editor with YAML support, put this on the first line of an instance:
  # yaml-language-server: $schema=instance.schema.json
"""


@click.command(epilog=EXAMPLES)
@click.argument("which", type=click.Choice(["instance", "placement"]), default="instance")
def schema(which: str) -> None:
    """Print the JSON Schema of instance (or placement) files, for editors and pipelines."""
    from moe_placer.cli.options import as_json
    from moe_placer.instance import Instance
    from moe_placer.placement import Placement

    model = Instance if which == "instance" else Placement
    content = {"$schema": "https://json-schema.org/draft/2020-12/schema", **model.model_json_schema(by_alias=True)}
    click.echo(as_json(content))
