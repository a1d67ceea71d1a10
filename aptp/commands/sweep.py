"""`aptp sweep`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aptp.commands.executing import Cpus, Executor, Gpus, Retries, resources_of, started_on
from aptp.commands.failing import Debug, checking, working
from aptp.commands.run import RUNS
from aptp.core.errors import RequestError
from aptp.core.launched import processes

if TYPE_CHECKING:
    from aptp.sweep.grid import Sweep
    from aptp.sweep.table import Table

Axis = Annotated[str | None, typer.Option(metavar="A,B,…", help="Values that the runs take in turn.")]


def sweep(
    file: Annotated[Path | None, typer.Argument(metavar="FILE", help="YAML: base, grid, runs.")] = None,
    router: Axis = None,
    balancer: Axis = None,
    granularity: Axis = None,
    budget: Axis = None,
    pruner: Axis = None,
    experts: Axis = None,
    seed: Axis = None,
    preset: Annotated[str | None, typer.Option(help="A named configuration to start from.")] = None,
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="YAML of all runs; overrides the preset.")] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY.PATH=VALUE", help="Any setting of all runs; may be repeated."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the sweep; by default runs/FILE, or runs/sweep.")] = None,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Runs at a time; they share the cores. By default 1, or what a cluster has room for."),
    ] = None,
    executor: Executor = "local",
    cpus: Cpus = None,
    gpus: Gpus = None,
    retries: Retries = None,
    results: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Leave a copy of each record there; what lies there is not run again."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the runs.")] = False,
    debug: Debug = False,
) -> None:
    """Carry out a grid of runs; started again, it goes on and repeats none that is finished."""
    if processes() > 1:
        raise RequestError(
            f"a sweep starts each run itself, but {processes()} processes were launched; start aptp sweep without a "
            "launcher."
        )
    resources = resources_of(executor, cpus=cpus, gpus=gpus, retries=retries)
    axes = {
        "router": router,
        "balancer": balancer,
        "granularity": granularity,
        "budget": budget,
        "pruner": pruner,
        "experts": experts,
        "seed": seed,
    }
    given = {name: value for name, value in axes.items() if value is not None}
    folder = out or RUNS / (file.stem if file else "sweep")
    with checking():
        from aptp.host import default_host
        from aptp.sweep.grid import cells, check_folders
        from aptp.sweep.table import Table

        asked = _asked(file, given, preset, config)
        found = cells(asked, default_host(), _shared(asked, assignments or []))
        check_folders(found, folder)
        if results is not None and results.exists() and not results.is_dir():
            raise RequestError(f"--results {str(results)!r} is a file; name a folder.")
        table = Table.open(found, folder, results)
    if dry_run:
        _list(table)
        return
    with working("the sweep", debug):
        from aptp.sweep.conduct import conduct

        at_once = jobs or (None if resources else 1)
        with started_on(resources, folder) as start, _board(at_once) as watch:
            table = conduct(found, folder, at_once, watch, results=results, start=start)
        _summarise(table, folder, results)
    if table.counts()["done"] < len(table.runs):
        raise typer.Exit(1)


def _asked(file: Path | None, axes: dict[str, str], preset: str | None, config: Path | None) -> Sweep:
    """The sweep of a file, or of flags."""
    from aptp.config import read_yaml, scalar
    from aptp.sweep.grid import Sweep

    if file:
        flags = [*axes, *(name for name, value in (("preset", preset), ("config", config)) if value is not None)]
        if flags:
            raise RequestError(f"the sweep {str(file)!r} says what its runs are; drop --{flags[0]}, or the file.")
        return Sweep.load(file)
    for name in ("router", "balancer", "experts"):
        if "pruner" in axes and name in axes:
            raise RequestError(f"--pruner makes one expert for all prompts; drop it, or --{name} {axes[name]}.")
    if empty := [name for name, text in axes.items() if not all(part.strip() for part in text.split(","))]:
        raise RequestError(f"--{empty[0]} {axes[empty[0]]!r} has an empty value; write it like A,B.")
    grid = {name: [scalar(part.strip()) for part in text.split(",")] for name, text in axes.items()}
    return Sweep(preset=preset, base=read_yaml(config, "configuration") if config else {}, grid=grid)


def _shared(asked: Sweep, assignments: list[str]) -> dict[str, Any]:
    """What `--set` says about all runs. Raises `RequestError` where they differ in that, or in an option of it."""
    from aptp.config import assignment

    varied: dict[str, list[Any]] = {}
    for part in (asked.grid, *(run.grid for run in asked.runs)):
        for key, values in part.items():
            varied.setdefault(key, []).extend(values)
    for run in asked.runs:
        for key, value in run.set.items():
            varied.setdefault(key, []).append(value)
    shared: dict[str, Any] = {}
    for text in assignments:
        ((key, value),) = assignment(text).items()
        if both := sorted(other for other, values in varied.items() if _meet(key, other, values)):
            raise RequestError(f"--set {text} sets what the sweep varies; drop it, or {both[0]!r} from the sweep.")
        shared.pop(key, None)
        shared[key] = value
    return shared


def _meet(key: str, other: str, values: list[Any]) -> bool:
    """Whether one key is, or is a part of, the other; but for an option of strategies that mere names leave open."""
    if f"{other}.".startswith(f"{key}."):
        return True
    if not f"{key}.".startswith(f"{other}."):
        return False
    option = key.removeprefix(f"{other}.")
    if other == "budget":
        return option in ("name", "target") or any(isinstance(value, dict) for value in values)
    names = all(isinstance(value, str) and ":" not in value for value in values)
    return not names or option in ("name", "argument")


@contextmanager
def _board(jobs: int | None) -> Iterator[Callable[[Table], None]]:
    """Draws how far a sweep is: a bar on a terminal, and everywhere a line for each run that ends."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from aptp.terminal import Terminal, duration

    console = Console(stderr=True)
    bar = Progress(
        TextColumn("sweep"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
        console=console,
        auto_refresh=False,  # by a thread, which could be caught in the middle of something when a run is forked
        disable=not console.is_interactive,
    )
    before: dict[str, str] = {}

    def watch(table: Table) -> None:
        task = bar.task_ids[0] if bar.task_ids else bar.add_task("", total=len(table.runs))
        counts, left = table.counts(), table.seconds_left(jobs)
        failed = counts["failed"] + counts["refused"]
        state = f"{counts['done']} done, {counts['running']} running, {failed} failed, {counts['waiting']} left"
        if left:
            state = f"{state}, about {duration(left)} to go"
        bar.update(task, completed=counts["done"] + failed, description=state)
        for entry in table.runs:
            if before.get(entry.name) in ("waiting", "running") and entry.status not in ("waiting", "running"):
                why = f": {entry.error}" if entry.error else f" in {duration(entry.seconds)}"
                Terminal(console).say(f"{entry.name} {entry.status}{why} ({state})")
            before[entry.name] = entry.status
        bar.refresh()

    with bar:
        yield watch


def _list(table: Table) -> None:
    from aptp.terminal import show
    from aptp.terminal import table as drawn

    rows = []
    for entry in table.runs:
        begun = Path(entry.folder).exists()
        rows.append((entry.name, "done" if entry.status == "done" else "goes on" if begun else "new", entry.folder))
    left = len(table.runs) - table.counts()["done"]
    show(drawn(("run", "state", "folder"), rows), f"runs: {len(table.runs)}, of which {left} to do")


def _summarise(table: Table, folder: Path, results: Path | None) -> None:
    """One row a run: its status, its method's cost as a fraction of dense and its metrics, and its time."""
    from aptp.report.measures import method_of, quality_measures
    from aptp.sweep.table import done_record
    from aptp.terminal import duration, show
    from aptp.terminal import table as drawn

    records = [done_record(entry, results) if entry.status == "done" else None for entry in table.runs]
    methods = [method_of(record) if record else None for record in records]
    measures = quality_measures([method for method in methods if method])
    rows: list[tuple[Any, ...]] = []
    for entry, record, method in zip(table.runs, records, methods, strict=True):
        figures = [measure.of(method) for measure in measures] if method else [None] * len(measures)
        cells = [method.fraction if method else None, *figures]
        seconds = entry.seconds or (sum(record.seconds.values()) if record else 0.0)
        rows.append((entry.name, entry.status, *("" if v is None else v for v in cells), duration(seconds)))
    columns = ("run", "status", "cost", *(f"{m.label} {m.arrow}".strip() for m in measures), "time")
    errors = [f"{entry.name} {entry.status}: {entry.error}" for entry in table.runs if entry.error]
    show(drawn(columns, rows), *errors, f"which method to use: aptp report {folder}")
