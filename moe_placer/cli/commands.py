"""The command group, and what its exit codes mean."""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
from typing import Any

import click

from moe_placer.cli import log
from moe_placer.cli.check_file_command import check_file
from moe_placer.cli.compare_command import compare
from moe_placer.cli.dag_command import dag
from moe_placer.cli.evaluate_command import evaluate
from moe_placer.cli.export_command import export
from moe_placer.cli.follow_command import follow
from moe_placer.cli.gate_command import gate
from moe_placer.cli.import_command import import_recording
from moe_placer.cli.init_command import init
from moe_placer.cli.inspect_command import inspect
from moe_placer.cli.interrupts import finish
from moe_placer.cli.library_command import library
from moe_placer.cli.plan_report_command import plan_report
from moe_placer.cli.replan_command import replan
from moe_placer.cli.report_command import report
from moe_placer.cli.schedule_command import schedule
from moe_placer.cli.schema_command import schema
from moe_placer.cli.screen_command import screen
from moe_placer.cli.solve_command import solve
from moe_placer.cli.solvers_command import solvers
from moe_placer.cli.split_command import split
from moe_placer.cli.sweep_command import sweep
from moe_placer.cli.verify_command import verify
from moe_placer.cli.watch_command import watch
from moe_placer.errors import InputError, MoePlacerError, VerificationError, visible

__all__ = ["cli", "run"]

EXIT_CODES = """
\b
Exit codes:
  0  done (also when interrupted with a verified placement written)
  1  bad input: a file is missing or wrong; every mistake is listed
  2  usage: unknown option, solver or limit
  3  proven infeasible: no placement can exist, and the message says why
  4  nothing found within the limits
  5  verification failed
  6  a limit does not hold: of gate, of schedule --require, or --fail-above-gap of solve, whose placement is written
  7  screen: a trial is not recommended now; 8: there is too little evidence
 70  a defect of this program or of a solver: please report it
130  ended by Ctrl-C, 143 by SIGTERM: files that are there are whole
"""
_DEFECT = 70  # EX_SOFTWARE of sysexits.h
_SCARCE = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN}  # files, memory, processes


_COMMANDS: dict[str, dict[click.Command, str]] = {  # by what they are for, as in README, in words that fit 80 columns
    "From an engine's recording to its plan": {
        import_recording: "Read what an engine recorded of its router, as traffic.",
        init: "Write an instance from a model's config and recordings.",
        solve: "Place every expert of INSTANCE, and verify the placement.",
        export: "Write PLACEMENT as the file that an engine loads.",
        check_file: "Check a file that an engine is to load.",
    },
    "Is it right, and is it worth it": {
        verify: "Recompute constraints, loads and bounds of PLACEMENT.",
        evaluate: "Say what PLACEMENT costs on any traffic.",
        gate: "Verify PLACEMENT, and hold its figures to limits.",
        inspect: "Describe INSTANCE, and whether it can be feasible.",
        screen: "Say whether placing pays, before anything is switched on.",
    },
    "Traffic drifts, GPUs fail": {
        replan: "Improve the placement that runs, within a budget of moves.",
        follow: "Compare ways to follow drifting traffic over windows.",
        watch: "Replan unattended, for every recording that comes in.",
    },
    "What a step takes, and why": {
        schedule: "Simulate one step: latency, memory, critical path, what-ifs.",
        sweep: "Simulate steps over batches, contexts, fabrics and plans.",
        dag: "Draw the deployment DAGs of PLACEMENT.",
        plan_report: "Hold a deployment plan against what is computed of it.",
    },
    "Methods side by side": {
        compare: "Run methods on instances: verified rows, and a page of them.",
        split: "Split recordings: to solve on one part and measure on another.",
        report: "Make the page of a comparison from its rows.",
        library: "Instances with the best placement and bound known of each.",
        solvers: "List the methods, and what they prove.",
        schema: "Print the JSON Schema of files, or of any command's JSON.",
    },
}


class _ByPurpose(click.Group):
    """A group whose help lists commands under headings."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write a section for each heading."""
        for purpose, commands in _COMMANDS.items():
            with formatter.section(purpose):
                formatter.write_dl([(f"{one.name:11}", words) for one, words in commands.items()])


@click.group(
    cls=_ByPurpose,
    epilog=EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="moe-placer", prog_name="moe-placer")
def cli() -> None:
    """Place the experts of Mixture-of-Experts models on GPU clusters, minimising the load of the busiest link."""


for _command in (one for commands in _COMMANDS.values() for one in commands):
    cli.add_command(_command)


def _choose_log(context: click.Context, _option: click.Parameter, form: str) -> None:
    log.use_json(form == "json", context.info_name or "")


_log_option = click.Option(
    ["--log"],
    type=click.Choice(log.FORMS),
    default="text",
    show_default=True,
    envvar="MOE_PLACER_LOG",
    show_envvar=True,
    expose_value=False,
    callback=_choose_log,
    help="Progress, warnings and errors on standard error: for people, or one JSON object a line.",
)
for _command in (*cli.commands.values(), *library.commands.values()):
    _command.params.append(_log_option)


def run(arguments: list[str] | None = None) -> None:
    """Run a command and exit with its code; once it has ended, no signal changes that any more.

    Parameters
    ----------
    arguments : list of str, optional
        Absent: those of this process.
    """
    _write_utf8()
    try:
        code = _run(arguments)
    finally:
        finish()
    sys.exit(code)


def _write_utf8() -> None:
    """Print names as they are where the locale knows nothing but ASCII, as click does; never fail for a letter."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            ascii_only = codecs.lookup(stream.encoding).name == "ascii"
            stream.reconfigure(encoding="utf-8" if ascii_only else None, errors="backslashreplace")


def _run(arguments: list[str] | None) -> int:
    """Run a command; say what went wrong, if anything did, and return the exit code."""
    log.reset(sys.argv[1:] if arguments is None else arguments, os.environ)
    try:
        # Whatever a command returns is its exit code.
        result: Any = cli.main(arguments, prog_name="moe-placer", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        finish()
        if log.is_json():
            log.error(error.format_message(), error.exit_code)
        else:
            error.show()
        return error.exit_code
    except MoePlacerError as error:
        return _fail(str(error), error.exit_code, **_details(error))
    except (KeyboardInterrupt, click.Abort):  # only where somebody else's process called us
        return _fail("interrupted; files that are there are whole", 130)
    except MemoryError:
        return _fail("out of memory; use fewer --workers or a smaller instance", 4)
    except Exception as error:
        # Files report their own errors, so what met a full disk is the output.
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            return _fail(f"output cannot be written: {error.strerror}", 1)
        if isinstance(error, OSError) and error.errno in _SCARCE:
            return _fail(f"the system has no more to give: {error.strerror}; use fewer --workers, or allow more", 4)
        if os.environ.get("MOE_PLACER_DEBUG"):
            raise
        where = "set MOE_PLACER_DEBUG=1 for where"
        return _fail(f"defect in moe-placer: {type(error).__name__}: {error} ({where})", _DEFECT)


def _fail(message: str, code: int, **details: Any) -> int:
    finish()
    log.error("\n".join(map(visible, message.split("\n"))), code, **details)
    return code


def _details(error: MoePlacerError) -> dict[str, Any]:
    """Return what logs in JSON say of an error beside its text: every mistake with its place, every broken rule."""
    if isinstance(error, InputError):
        return {
            "mistakes": [
                {
                    "file": None if mistake.file is None else str(mistake.file),
                    "line": mistake.line,
                    "path": mistake.path,
                    "found": mistake.found,
                    "expected": mistake.expected,
                }
                for mistake in error.mistakes
            ]
        }
    return {"rules": list(error.rules)} if isinstance(error, VerificationError) else {}
