"""The command line: `secateur prune`, `sweep`, `inspect`, `evaluate`, `report` and others.

A command is a class in `options` that says what it takes, a file in `commands` that does it, and
a line in `COMMANDS`. The file is imported when the command runs; it may import PyTorch.

Exit status: 0 success; 2 a mistake in the call or its inputs, an interruption or a full disk
(one sentence on standard error, nothing written), or a file that could not be made (the others
are written); 1 a defect of secateur (a traceback).
"""

from __future__ import annotations

import dataclasses
import inspect
import io
import os
import sys
from typing import Annotated, Any, get_type_hints

import typer

from secateur.cli import options, started
from secateur.cli.failures import comes_of_interruption, one_sentence, printed, usage
from secateur.cli.signals import load
from secateur.support.interruptions import clean_up_when_killed, interruption
from secateur.version import __version__

COMMANDS: dict[str, type] = {
    "prune": options.Prune,
    "sweep": options.Sweep,
    "advise": options.Advise,
    "report": options.Report,
    "compare": options.Compare,
    "bench": options.Bench,
    "inspect": options.Inspect,
    "runtimes": options.Runtimes,
    "evaluate": options.Evaluate,
    "recipe": options.Recipe,
    "fractals": options.Fractals,
    "pack": options.Pack,
    "unpack": options.Unpack,
}

_INTERRUPTED = 130  # what typer makes of Ctrl-C before a command begins and after it has ended

app = typer.Typer(
    name="secateur",
    help="Prune a trained neural network without retraining it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"secateur {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Prune a trained neural network without retraining it."""


def _add(name: str, kind: type) -> None:
    """Makes a command of a class of options."""

    def command(**values: Any) -> None:
        module = load(f"secateur.cli.commands.{name}")
        if started.count() > 1 and name in started.SHARED:
            together = load("secateur.cli.processes")
            together.run_together(lambda: module.run(kind(**values)))
            return
        with one_sentence():
            started.check_shares(name)
            module.run(kind(**values))

    command.__signature__ = _signature(kind)  # type: ignore[attr-defined]
    app.command(name, help=_help(kind))(command)


def _help(kind: type) -> str:
    """A class's docstring with one line for each paragraph, which the terminal wraps."""
    paragraphs = (inspect.getdoc(kind) or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _signature(kind: type) -> inspect.Signature:
    """A command's parameters: the fields of its options, its own before those that it shares."""
    hints = get_type_hints(kind, include_extras=True)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    names = dict.fromkeys(name for part in kind.__mro__ for name in inspect.get_annotations(part))
    return inspect.Signature([_parameter(fields[name], hints[name]) for name in names])


def _parameter(field: dataclasses.Field[Any], hint: Any) -> inspect.Parameter:
    required = field.default is dataclasses.MISSING
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if required else field.default,
        annotation=hint,
    )


for _name, _kind in COMMANDS.items():
    _add(_name, _kind)


def run() -> None:
    """Runs the command of the call and exits; Ctrl-C and a polite kill leave nothing behind."""
    clean_up_when_killed()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # an old terminal may lack a letter
    # PyTorch asks for huge pages: fresh memory was filled twice as fast on Linux. Read at import.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if started.count() > 1:  # PyTorch would print its stack where another process has failed
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    sys.exit(printed(_answer))


def interrupted() -> str:
    """The line that tells of an interruption."""
    return f"secateur: error: {interruption()}\n"


def _answer() -> int:
    """Runs the command of the call; its exit status."""
    try:
        status = app(standalone_mode=False) or 0
    except typer.Abort:  # what older versions make of Ctrl-C
        raise KeyboardInterrupt from None
    except Exception as error:
        if comes_of_interruption(error):
            raise KeyboardInterrupt from None
        if not hasattr(error, "format_message"):  # not a mistake in the options
            raise
        return usage(error)
    if status == _INTERRUPTED:
        raise KeyboardInterrupt
    return status
