"""`aptp report`: the page of one run made anew, or a comparison of several."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aptp.commands.failing import Debug, checking, working
from aptp.commands.run import RUNS
from aptp.core.errors import RequestError, gist

if TYPE_CHECKING:
    from aptp.report.comparison.sources import Failure, Source

OUT = RUNS / "report"
RUN_HELP = "Folders of runs or of sweeps, or copies of a run's record.json."


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help=RUN_HELP)],
    out: Annotated[Path | None, typer.Option(help=f"Folder of a comparison; by default {OUT}.")] = None,
    mixed: Annotated[bool, typer.Option("--mixed", help="Compare runs of several protocols, and mark them.")] = False,
    reference: Annotated[
        str | None,
        typer.Option(metavar="METHOD", help="What the others are compared with; by default contrastive + sinkhorn."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Write the page of a run anew, or compare several runs.

    One folder of a run gets its own report.html. Several, or a sweep's, are compared: report.html, report.md,
    report.csv and report.json are written into --out.
    """
    if len(runs) == 1 and (runs[0] / "record.json").is_file() and not (out or mixed or reference):
        with working("the report", debug):
            from aptp.report import write_report

            with checking():
                written = write_report(runs[0])
            typer.echo(written)
        return
    folder = out or OUT
    _check_out(folder)
    with checking():
        sources, failures, warnings = _read(runs, folder)
    with working("the report", debug):
        from aptp.report.comparison.gathering import gather
        from aptp.report.comparison.writing import write_comparison

        with checking():
            comparison = gather(sources, failures, mixed=mixed, reference=reference, warnings=warnings)
        command = ["aptp", "report", *map(str, runs), *(["--out", str(out)] if out else [])]
        command += [*(["--mixed"] if mixed else []), *(["--reference", reference] if reference else [])]
        typer.echo(write_comparison(comparison, folder, shlex.join(command)))


def _check_out(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise RequestError(f"--out {str(folder)!r} is a file; name a folder.")
    if (folder / "record.json").exists():
        raise RequestError(
            f"--out {str(folder)!r} is the folder of a run, which has a report of its own; name another."
        )


def _read(paths: list[Path], out: Path) -> tuple[list[Source], list[Failure], list[str]]:
    """The finished runs that are named, the failed ones, and what is to be said of the rest.

    A folder of a comparison, such as `out` from last time, is passed over: it lies where `runs/*` names it.

    Raises:
        RequestError: for what is no run or no sweep, a run that is not finished, and one that is named twice.
    """
    from aptp.report.comparison.sources import Failure, read_source, united

    found: list[Source | Failure] = []
    warnings: list[str] = []
    places: dict[Path, Path] = {}
    for path in paths:
        if (other := places.setdefault(path.resolve(), path)) is not path:
            raise RequestError(f"{str(other)!r} is named more than once; once is right.")
        if (path / "sweep.json").is_file():
            of_sweep, unfinished, elsewhere = _read_sweep(path)
            found += of_sweep
            if unfinished:
                warnings.append(f"runs of {str(path)!r} that are not finished are left out: {', '.join(unfinished)}.")
            if absent := [name for name in elsewhere if name not in {other.stem for other in paths}]:
                warnings.append(f"runs of {str(path)!r} that have no folder there are left out: {', '.join(absent)}.")
        elif not _is_comparison(path, out):
            found.append(read_source(path))
    failures = [each for each in found if isinstance(each, Failure)]
    return united([each for each in found if not isinstance(each, Failure)]), failures, warnings


def _is_comparison(path: Path, out: Path) -> bool:
    """Whether a folder is the one to write into, or holds a comparison and no run."""
    known = path.is_dir() and path.resolve() == out.resolve()
    return (known or (path / "report.json").is_file()) and not (path / "record.json").exists()


def _read_sweep(folder: Path) -> tuple[list[Source | Failure], list[str], list[str]]:
    """What became of a sweep's runs, and the names of those that are not finished, and of those that lie elsewhere."""
    from aptp.report.comparison.sources import Failure, read_source
    from aptp.sweep.table import Table

    file = folder / "sweep.json"
    try:
        table = Table.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(f"{str(file)!r} is not the table of a sweep: {gist(error)}.") from error
    found: list[Source | Failure] = []
    unfinished, elsewhere = [], []
    for entry in table.runs:
        if (folder / entry.name).resolve().parent != folder.resolve():
            raise RequestError(f"{str(file)!r} names a run {entry.name!r}, which is no folder of the sweep.")
        record = entry.model_copy(update={"folder": str(folder / entry.name)}).record()
        if record and record.status == "done":  # perhaps by itself, after the sweep
            found.append(read_source(folder / entry.name))
        elif entry.status == "done" and not (folder / entry.name).exists():
            elsewhere.append(entry.name)
        elif entry.status in ("failed", "refused"):
            found.append(Failure(str(folder / entry.name), entry.error or "no reason was recorded"))
        else:
            unfinished.append(entry.name)
    return found, unfinished, elsewhere
