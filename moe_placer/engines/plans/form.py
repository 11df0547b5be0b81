"""What a format of plan files can do, and what it takes to start an engine with such a file."""

from __future__ import annotations

import shlex
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from moe_placer.engines.layouts import ENGINES, LAYOUTS, EngineRules, FileLayout
from moe_placer.engines.plans.checks import Fault
from moe_placer.engines.plans.plan import Deployment, Plan

__all__ = ["MAX_BYTES", "PlanForm", "Start", "default_slots"]

MAX_BYTES = 512_000_000
# Variables of commands that the plan does not know.
_YOURS = {"MODEL": "the model's path or name", "NODE_RANK": "this node's number", "HEAD": "the host of node 0"}


@dataclass(frozen=True)
class Start:
    """How to start an engine so that it uses a file.

    Attributes
    ----------
    command : str
        The program, as users call it.
    flags : tuple of str
        Those that the plan decides, and those without which no process finds the others.
    environment : mapping
        Variables that every process needs.
    config : str
        Text of a configuration file, where the engine takes the plan from one; empty otherwise.
    """

    command: str
    flags: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    config: str = ""

    def to_text(self) -> str:
        """Return shell lines."""
        exports = [f"export {name}={shlex.quote(value)}" for name, value in self.environment.items()]
        command = " \\\n  ".join([self.command, *self.flags])
        yours = [name for name in _YOURS if f"${name}" in command or f"(({name} " in command]
        named = ["# Set " + "; ".join(f"{name}: {_YOURS[name]}" for name in yours) + "."] if yours else []
        config = ["# In the configuration file:", *self.config.rstrip().splitlines(), ""] if self.config else []
        return "\n".join([*config, *named, *exports, command]) + "\n"


class PlanForm(ABC):
    """One format: how a plan becomes a file, and a file a plan.

    Attributes
    ----------
    name : str
        As on the command line; key of `LAYOUTS`.
    what : str
        One line for help and documents.
    suffix : str
        The ending without which the engine does not read the file; empty where any will do.
    also_read : tuple of str
        Further endings that it reads.
    mtp : str
        Why layers for multi-token prediction are not written; empty where they are, on request.
    consequences : mapping
        What the engine does with a file of each kind of fault.
    """

    name: ClassVar[str]
    what: ClassVar[str]
    suffix: ClassVar[str] = ""
    also_read: ClassVar[tuple[str, ...]] = ()
    mtp: ClassVar[str] = ""
    consequences: ClassVar[Mapping[Fault, str]] = {}

    @property
    def layout(self) -> FileLayout:
        """How its files name layers and order slots."""
        return LAYOUTS[self.name]

    @property
    def rules(self) -> EngineRules:
        """What its engine demands."""
        return ENGINES[self.layout.engine]

    @property
    def reader(self) -> str:
        """Engine and version that read its files."""
        return self.rules.label

    @abstractmethod
    def encode(self, plan: Plan, deployment: Deployment, mtp_layers: int = 0) -> bytes:
        """Return the file's bytes.

        Parameters
        ----------
        plan : Plan
            One that keeps the engine's rules.
        deployment : Deployment
        mtp_layers : int
            Layers for multi-token prediction that follow the model's; they get the engine's own map.
        """

    @abstractmethod
    def decode(self, raw: bytes, deployment: Deployment | None, file: Path) -> Plan:
        """Return the plan in a file.

        Parameters
        ----------
        raw : bytes
        deployment : Deployment or None
            What the plan should fit; without it ranks and the number of experts are taken from the file where it has
            them, and a plan of one rank stands for one that does not.
        file : Path
            For messages.

        Raises
        ------
        InputError
            The engine would refuse the file, or serve wrong answers; every kind of fault once.
        """

    @abstractmethod
    def start(self, plan: Plan, deployment: Deployment, file: Path) -> Start:
        """Return how to start the engine with the file."""

    def warnings(self, plan: Plan, deployment: Deployment) -> Sequence[str]:
        """Return what a user should know before relying on the file."""
        del plan, deployment
        return ()


def default_slots(deployment: Deployment, slots: int) -> list[int]:
    """Return the map that engines use without a plan: experts in order, then again from 0."""
    return [slot % deployment.experts for slot in range(slots)]
