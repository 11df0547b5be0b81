"""Reads a comparison's config.json, to run the comparison again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from moe_placer.errors import InputError, Mistake
from moe_placer.experiments.compare.cell import Settings
from moe_placer.experiments.compare.matrix import Given
from moe_placer.experiments.report.rows import Config, read_config_file

__all__ = ["read_config"]

Arguments = tuple[list[Path], list[str], list[int], Settings, Given]  # of `build_matrix`


def read_config(file: Path, folders: Sequence[Path]) -> tuple[Arguments, str | None]:
    """Return the arguments of `build_matrix` that give a comparison again, and its question.

    Parameters
    ----------
    file : Path
        config.json of a comparison. It names instances, recordings and plans without their folders.
    folders : sequence of Path
        Where these are looked for, in this order.

    Raises
    ------
    InputError
        The file is wrong, or something that it names is in none of the folders.
    """
    config = read_config_file(file)
    missing: list[Mistake] = []

    def found(name: str, field: str) -> Path:
        for folder in folders:
            if (folder / name).is_file():
                return folder / name
        hint = "; `moe-placer split` cuts recordings into even and odd sequences" if field != "instances" else ""
        searched = ", ".join(str(folder) for folder in folders)
        missing.append(Mistake(f"{name}, which is not in {searched}", f"it in a folder of --find{hint}", field, file))
        return Path(name)

    instances = [found(f"{name}.yaml", "instances") for name in config.instances]
    traces, held_out, current = (
        [found(name, field) for name in getattr(config, field)] for field in ("traces", "held_out", "current")
    )
    if missing:
        raise InputError(missing)
    seeds = config.seeds if isinstance(config.seeds, list) else [config.seeds]
    given = Given(traces, held_out, config.next_window, current, config.leave_one_out)
    return (instances, config.solvers, seeds, _settings(config, file), given), config.question


def _settings(config: Config, file: Path) -> Settings:
    try:
        return Settings(**config.parameters)
    except TypeError:
        known = ", ".join(Settings.__dataclass_fields__)
        raise InputError(Mistake(", ".join(config.parameters), f"only {known}", "parameters", file)) from None
