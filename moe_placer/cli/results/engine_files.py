"""What commands that read and write files of others print with ``--json``."""

from __future__ import annotations

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from moe_placer.cli.results.documented import documented

__all__ = ["CheckFileResult", "ExportResult", "FilesResult", "ImportResult", "InitResult"]


@documented
class ImportResult(TypedDict):
    """What `moe-placer import --json` prints."""

    schema: Literal["moe-placer/import/1"]
    """Name and version of this schema."""
    format: str
    """What was read."""
    engine: str
    """The engine that writes it; empty where any may have."""
    files: list[str]
    """Names of what was read."""
    layers: list[int] | None
    """Index of each MoE layer among all decoder layers; null where the recording counts MoE layers only."""
    dense_layers: list[int]
    """Decoder layers without any choice."""
    decoder_layers: int | None
    """Decoder layers in all, where the recording has a row for each."""
    experts: int
    """Experts of a layer; at least so many, where `experts_known` is false."""
    experts_known: bool
    """Whether the recording says how many experts there are."""
    top_k: int | None
    """Choices of a token in a layer; null for counts alone."""
    tokens: int
    """Tokens whose choices were recorded one by one; 0 for counts alone."""
    kept_tokens: int
    """How many of them the file keeps."""
    steps: int
    """Steps with choices."""
    empty_steps: int
    """Steps without."""
    windows: int
    """Windows that the steps are merged into."""
    sources: int
    """Source ranks told apart; 0 for none."""
    notes: list[str]
    """What else a user should know, in sentences."""
    arrays: dict[str, list[int]]
    """Array of the written file to its shape."""
    file: str
    """What was written."""


@documented
class InitResult(TypedDict):
    """What `moe-placer init --json` prints."""

    schema: Literal["moe-placer/init/1"]
    """Name and version of this schema."""
    instance: dict[str, Any]
    """The instance, as the file has it (`moe-placer schema --of instance`)."""
    assumed: list[str]
    """What nobody said and was assumed, in sentences."""
    file: str
    """What was written."""


@documented
class ExportResult(TypedDict):
    """What `moe-placer export --json` prints."""

    schema: Literal["moe-placer/export/1"]
    """Name and version of this schema."""
    format: str
    """As asked for."""
    engine: str
    """The engine and version that read it."""
    instance: str
    """Name of the instance."""
    file: str
    """The engine's file."""
    start_file: str
    """How to start the engine with it."""
    ranks: int
    """Expert-parallel ranks."""
    nodes: int
    """Nodes that they are on."""
    layers: int | None
    """MoE layers; null where the file holds no plan."""
    experts: int | None
    """Experts of a layer, likewise."""
    redundant_slots: int | None
    """Slots beyond one of each expert, in every layer, likewise."""
    command: str
    """The engine's own command."""
    flags: list[str]
    """Flags to add to it."""
    environment: dict[str, str]
    """Variables to set on every node."""
    config: str | None
    """Text for the engine's own configuration file; null where it needs none."""
    warnings: list[str]
    """What a user should know before starting, in sentences."""
    launcher_file: str | None
    """Which host runs which rank; null without `--launcher`."""
    launch: list[str] | None
    """How to use it, line by line."""


@documented
class MistakeInFile(TypedDict):
    """One thing that is wrong in an engine's file."""

    found: str
    """What stands there."""
    expected: str
    """What should."""
    path: str
    """Where."""
    text: str
    """All of it in one line."""


@documented
class CheckFileResult(TypedDict):
    """What `moe-placer check-file --json` prints; of a file that is refused, up to `mistakes` only.

    The figures from `total_z` on are there with `-o` only.
    """

    schema: Literal["moe-placer/file-check/1"]
    """Name and version of this schema."""
    ok: bool
    """Whether the engine can load it; else the exit code is 1."""
    format: str
    """As asked for."""
    file: str
    """What was checked."""
    mistakes: list[MistakeInFile]
    """Empty for a good file."""
    engine: NotRequired[str]
    """The engine and version that read it."""
    warnings: NotRequired[list[str]]
    """What a user should know, in sentences."""
    ranks: NotRequired[int | None]
    """Expert-parallel ranks; null where neither file nor instance says."""
    layers: NotRequired[int | None]
    """MoE layers; null where the file holds no plan."""
    experts: NotRequired[int | None]
    """Experts of a layer, likewise."""
    slots_by_layer: NotRequired[list[int] | None]
    """Slots of each layer, likewise."""
    total_z: NotRequired[float]
    """Sum over layers of the cost of the busiest link."""
    total_bound: NotRequired[float]
    """No placement has a smaller `total_z`."""
    max_z: NotRequired[float]
    """The largest z of a layer."""
    aggregate: NotRequired[float]
    """The largest cost of any link over all layers together."""
    aggregate_link: NotRequired[str]
    """That link; empty where no link carries anything."""


@documented
class FilesResult(TypedDict):
    """What `dag --json`, `split --json` and `report --json` print."""

    schema: Literal["moe-placer/files/1"]
    """Name and version of this schema."""
    files: list[str]
    """What was written, in order."""
