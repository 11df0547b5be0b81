"""Targets of ``moe-placer schedule --require``: their answers in words and in JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moe_placer.errors import GateError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from moe_placer.cli.results.simulated import TargetAnswered
    from moe_placer.schedule.simulate import Timeline
    from moe_placer.schedule.step_figures import Figures
    from moe_placer.schedule.targets import Answer, Target

__all__ = ["held_to", "refuse_missed", "target_content", "target_lines"]


def held_to(targets: Iterable[Target], timeline: Timeline, figures: Figures) -> list[Answer]:
    """Answer every target, in the order in which they were asked."""
    from moe_placer.schedule.targets import answer_target

    return [answer_target(target, timeline, figures) for target in targets]


def target_lines(answers: Sequence[Answer]) -> list[str]:
    """Say of each target what was asked, what came out, and what limits it."""
    rows = [("target", "asked", "got", "", "limited by")]
    for answer in answers:
        asked = f"{'at most ' if answer.target.at_most else ''}{_figure(answer, answer.target.asked)}"
        verdict = "holds" if answer.ok else "MISSED"
        rows.append((answer.target.name, asked, _figure(answer, answer.got), verdict, answer.limiter))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return ["  ".join([*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[4]]) for row in rows]


def target_content(answers: Iterable[Answer]) -> list[TargetAnswered]:
    """Return what ``--json`` prints of targets."""
    return [
        {
            "target": answer.target.name,
            "unit": answer.target.unit,
            "asked": list(answer.target.asked),
            "got": list(answer.got),
            "ok": answer.ok,
            "limiter": answer.limiter,
            "limits": answer.limits,
        }
        for answer in answers
    ]


def refuse_missed(answers: Iterable[Answer]) -> None:
    """End the command with exit code 6 where a target does not hold."""
    missed = [answer for answer in answers if not answer.ok]
    if missed:
        told = "; ".join(
            f"{one.target.name} is {_figure(one, one.got)}, asked "
            f"{'at most ' if one.target.at_most else ''}{_figure(one, one.target.asked)}"
            for one in missed
        )
        count = "a target" if len(missed) == 1 else f"{len(missed)} targets"
        raise GateError(f"the step misses {count}: {told}")


def _figure(answer: Answer, values: Sequence[float]) -> str:
    if answer.target.unit == "share":
        return "/".join(f"{100 * value:.1f}".removesuffix(".0") for value in values) + "%"
    return f"{values[0]:,.1f} {answer.target.unit}"
