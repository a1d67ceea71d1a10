"""The command line: `main` is the program `aptp`. Imports nothing heavy."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from typing import Annotated

import typer

from aptp import __version__
from aptp.commands.calibrate import calibrate
from aptp.commands.export import export
from aptp.commands.failing import Commands
from aptp.commands.inspect import doctor, plugins
from aptp.commands.prompts import generate
from aptp.commands.recover_expert import recover_expert
from aptp.commands.report import report
from aptp.commands.route import route
from aptp.commands.run import run
from aptp.commands.serve import serve
from aptp.commands.sweep import sweep

COLLECT = 10_000, 10, 100
"""New objects until the newest are searched for garbage, such searches until older ones are, those until all are."""
SPINS = "10000"
"""Of `benchmarks/test_threads.py`."""

app = typer.Typer(cls=Commands, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
for command in (run, sweep, report, route, generate, export, calibrate, serve):
    app.command()(command)
app.command(hidden=True)(recover_expert)
app.add_typer(plugins, name="plugins")
app.command()(doctor)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    """Prune a text-to-image diffusion model into experts and route each prompt to the one it needs."""
    if version:
        typer.echo(f"aptp {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """Run the command that the arguments name; leaves the process with its exit status.

    Unless the environment says otherwise, the threads of GNU's OpenMP, which torch has on Linux, wait `SPINS` rounds
    for one another before they sleep. Asleep at once, as they are elsewhere, they take nearly twice as long for a step
    of the embedded model; awake for long, several times as long where other work shares the cores.

    The libraries make hundreds of thousands of objects, nearly all of which stay. Searching them for garbage over and
    over, and once more on leaving, took a fifth of a short run: it is done seldom, and not at the end.
    """
    if sys.platform != "linux":
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    elif "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    gc.set_threshold(*COLLECT)
    atexit.register(gc.freeze)
    app()
