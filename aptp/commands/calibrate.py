"""`aptp calibrate`: another budget, or other traffic, for a finished run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from aptp.commands.failing import Debug, working
from aptp.commands.prompts import FILE_HELP, Run, read_prompts
from aptp.core.errors import RequestError

if TYPE_CHECKING:
    from aptp.calibration import Calibration


def calibrate(
    run: Run,
    budget: Annotated[
        str | None, typer.Option(help="Share of the dense cost that the average prompt may have: macs:0.6, or 0.6.")
    ] = None,
    prompts: Annotated[str | None, typer.Option(metavar="FILE|-", help=FILE_HELP)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would do, and write nothing.")] = False,
    undo: Annotated[bool, typer.Option("--undo", help="Go back to the routes without it.")] = False,
    debug: Debug = False,
) -> None:
    """Move prompts between a run's experts until their average cost is a budget.

    Nothing is trained and no expert changes. The prompts are a sample of the traffic to come.
    """
    if undo and (budget or prompts or dry_run):
        raise RequestError("--undo stands alone: it goes back to the routes without a calibration.")
    if not undo and (budget is None or prompts is None):
        raise RequestError("give the budget with --budget and a sample of the traffic with --prompts, or --undo.")
    with working("calibrating", debug):
        from aptp import calibration
        from aptp.host import default_host

        if undo:
            calibration.undo(run)
            typer.echo(f"{run} serves as it came.")
            return
        fitted = calibration.calibrate(run, str(budget), read_prompts(str(prompts)), default_host())
        _show(fitted)
        if dry_run:
            typer.echo("nothing was written.")
            return
        typer.echo(f"{fitted.save(run)}: in force when the run is next loaded; aptp calibrate {run} --undo goes back.")


def _show(fitted: Calibration) -> None:
    from aptp.terminal import show, table

    effects = fitted.before, fitted.after
    rows = [
        (f"expert {index}, cost {fraction:.3f}", *loads)
        for index, (fraction, *loads) in enumerate(zip(fitted.fractions, *(e.load for e in effects), strict=True))
    ]
    show(
        table(
            (f"over {fitted.prompts} prompts", "now", "then"),
            [
                *rows,
                ("expected cost", *(e.cost for e in effects)),
                ("its 95% interval, ±", *(e.within for e in effects)),
                ("teacher error, predicted", *(_figure(e.teacher_error) for e in effects)),
            ],
        )
    )


def _figure(value: float | None) -> str:
    return "not known" if value is None else f"{value:.3g}"
