"""What-if options of ``moe-placer schedule``, and the answer in words and in JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from moe_placer.errors import UsageError

if TYPE_CHECKING:
    from moe_placer.cli.results.simulated import WhatIfAnswered
    from moe_placer.instance import Instance
    from moe_placer.schedule.what_if import Advice, Answer, Question

__all__ = ["answer_content", "answer_lines", "build_question", "slow_gpus_of", "what_if_options"]

_SHOWN = 5  # experts without a replica that are named

Command = TypeVar("Command", bound=Callable[..., Any])


def what_if_options(command: Command) -> Command:
    """Add the options to a command, as ``slow_gpus``, ``slow_links``, ``failed`` and ``replicas``."""
    for option in (
        click.option(
            "--replicas",
            "--copies",
            "replicas",
            type=int,
            metavar="N",
            default=4,
            show_default=True,
            help="What if: further replicas to try, each a simulation; 0: none.",
        ),
        click.option(
            "--fail-gpu", "failed", multiple=True, type=int, metavar="ID", help="What if it fails? Repeatable."
        ),
        click.option(
            "--slow-link",
            "slow_links",
            multiple=True,
            metavar="NAME=SHARE",
            help="What if this link has so much of its bandwidth (0.5: half)? Repeatable.",
        ),
        click.option(
            "--slow-gpu",
            "slow_gpus",
            multiple=True,
            metavar="ID=FACTOR",
            help="What if this GPU takes so many times as long to compute? Repeatable.",
        ),
    ):
        command = option(command)
    return command


def build_question(slow_gpus: Sequence[str], slow_links: Sequence[str], failed: Sequence[int]) -> Question:
    """Build the question that the options ask.

    Raises
    ------
    UsageError
        Text of another form, or something that is named twice.
    """
    from moe_placer.schedule.what_if import Question
    from moe_placer.schedule.workload import Condition

    gpus = slow_gpus_of(slow_gpus)
    links = dict(_pairs("--slow-link", "NAME=SHARE, such as leaf0->spine1=0.5", slow_links))
    if len(links) < len(slow_links):
        raise UsageError("--slow-link names a link twice")
    return Question(Condition(gpus, links), tuple(failed))


def slow_gpus_of(texts: Sequence[str]) -> dict[int, float]:
    """Read ``ID=FACTOR`` of ``--slow-gpu``: GPU to how many times as long it takes.

    Raises
    ------
    UsageError
        Text of another form, or a GPU that is named twice.
    """
    gpus: dict[int, float] = {}
    for name, factor in _pairs("--slow-gpu", "ID=FACTOR, such as 17=2", texts):
        if not name.isdecimal():
            raise UsageError(f"--slow-gpu names {name!r}, expected a global GPU id")
        if int(name) in gpus:
            raise UsageError(f"--slow-gpu names GPU {int(name)} twice")
        gpus[int(name)] = factor
    return gpus


def _pairs(option: str, form: str, texts: Sequence[str]) -> Iterator[tuple[str, float]]:
    for text in texts:
        name, equals, value = text.rpartition("=")
        try:
            if not (name and equals):
                raise ValueError
            yield name.strip(), float(value)
        except ValueError:
            raise UsageError(f"{option} is {text!r}, expected {form}") from None


def answer_lines(instance: Instance, question: Question, answer: Answer) -> Iterator[str]:
    """Yield the answer, a sentence a line."""
    yield f"What if {' and '.join(_named(question))}:"
    if answer.after_us is None:
        yield from _cannot_run(instance, answer)
        return
    later = answer.after_us - answer.before_us
    word = "later" if later >= 0 else "earlier"
    yield (
        f"  The step takes {answer.after_us / 1e3:,.3f} ms instead of {answer.before_us / 1e3:,.3f} ms: "
        f"{abs(later):,.1f} µs {word} ({later / answer.before_us:+.2%})."
    )
    if not answer.fits:
        yield "  But memory does not hold it: use fewer tokens per GPU or a shorter context."
    yield from _advice_lines(instance, answer)


def _named(question: Question) -> list[str]:
    condition = question.condition
    named = [f"GPU {gpu} takes {factor:g} times as long" for gpu, factor in condition.slow_gpus.items()]
    named += [f"link {link} has {share:g} of its bandwidth" for link, share in condition.slow_links.items()]
    return named + [f"GPU {gpu} fails" for gpu in question.failed]


def _cannot_run(instance: Instance, answer: Answer) -> Iterator[str]:
    lost, stranded = answer.survivors.lost, answer.survivors.stranded
    for gpus in stranded:
        yield f"  The step cannot run: of the tensor-parallel group of GPUs {', '.join(map(str, gpus))} none is left."
    if lost:
        layers = sorted({layer for layer, _ in lost})
        shown = ", ".join(f"layer {layer} expert {expert}" for layer, expert in lost[:_SHOWN])
        more = f" and {len(lost) - _SHOWN:,} more" if len(lost) > _SHOWN else ""
        yield (
            f"  The step cannot run: {len(lost):,} experts in {len(layers)} layers (of {len(instance.moe_layers)} with "
            f"experts) have no other replica: {shown}{more}."
        )
        yield "  Each needs a second replica elsewhere: see placement.replicas of the instance."


def _advice_lines(instance: Instance, answer: Answer) -> Iterator[str]:
    if answer.spare:
        yield (
            "  No GPU has a free slot for a further replica that would relieve it. With one slot more per GPU "
            f"(placement.slots_per_gpu: {instance.placement.slots_per_gpu + 1}):"
            if answer.advice
            else "  No further replica would relieve it, not even with one slot more per GPU."
        )
    elif answer.advice:
        yield "  Further replicas in free slots, best first:"
    for one in answer.advice:
        yield f"    {_replicas(instance, one)}: {_gain(answer, one)}"


def _replicas(instance: Instance, advice: Advice) -> str:
    if len(advice.replicas) > 1:
        return f"a replica in each of {len(advice.replicas)} layers"
    (replica,) = advice.replicas
    return f"layer {instance.moe_layers[replica.row]} expert {replica.expert} on GPU {replica.gpu}"


def _gain(answer: Answer, advice: Advice) -> str:
    saved = (answer.after_us or 0.0) - advice.latency_us
    fits = "" if advice.fits else "; memory does not hold it"
    if saved <= 0:
        return f"no gain (the step is {-saved:,.1f} µs longer){fits}"
    later = (answer.after_us or 0.0) - answer.before_us
    share = f", {saved / later:.0%} of the delay" if later > 0 else ""
    return f"the step is {saved:,.1f} µs shorter{share}{fits}"


def answer_content(instance: Instance, question: Question, answer: Answer) -> WhatIfAnswered:
    """Return the answer for ``--json``."""
    after = answer.after_us
    return {
        "slow_gpus": {str(gpu): factor for gpu, factor in question.condition.slow_gpus.items()},
        "slow_links": dict(question.condition.slow_links),
        "failed_gpus": list(question.failed),
        "runs": answer.survivors.runs,
        "lost_experts": [{"layer": layer, "expert": expert} for layer, expert in answer.survivors.lost],
        "stranded_groups": [list(gpus) for gpus in answer.survivors.stranded],
        "latency_us": after,
        "later_us": None if after is None else after - answer.before_us,
        "later_share": None if after is None else after / answer.before_us - 1,
        "fits": answer.fits,
        "assumed_slots_per_gpu": instance.placement.slots_per_gpu + answer.spare,
        "slots_full": bool(answer.spare),
        "copies": [
            {
                "latency_us": one.latency_us,
                "saved_us": None if after is None else after - one.latency_us,
                "fits": one.fits,
                "copies": [
                    {"layer": instance.moe_layers[replica.row], "expert": replica.expert, "gpu": replica.gpu}
                    for replica in one.replicas
                ],
            }
            for one in answer.advice
        ],
    }
