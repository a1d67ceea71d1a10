"""`aptp run`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aptp.commands.executing import Cpus, Executor, Gpus, Retries, resources_of, started_on
from aptp.commands.failing import Debug, checking, working
from aptp.core.errors import RequestError
from aptp.core.launched import processes, rank

if TYPE_CHECKING:
    from aptp.config import RunConfig
    from aptp.harness import Plan

RUNS = Path("runs")


def run(
    model: Annotated[str | None, typer.Option(help="tiny, a local diffusers folder, or a hub name.")] = None,
    data: Annotated[str | None, typer.Option(help="Data set: NAME or NAME:ARGUMENT.")] = None,
    encoder: Annotated[str | None, typer.Option(help="Prompt encoder.")] = None,
    router: Annotated[str | None, typer.Option(help="Router.")] = None,
    balancer: Annotated[str | None, typer.Option(help="Balancer of the training assignment.")] = None,
    granularity: Annotated[str | None, typer.Option(help="Which parts of the denoiser get gates.")] = None,
    budget: Annotated[str | None, typer.Option(help="Share of the dense cost: 0.66, or ESTIMATOR:0.66.")] = None,
    pruner: Annotated[str | None, typer.Option(help="A static pruner instead of a router.")] = None,
    metric: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Metric of the pictures; may be repeated.")
    ] = None,
    compare: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Static pruner beside, or none; may be repeated.")
    ] = None,
    experts: Annotated[int | None, typer.Option(help="Number of experts.")] = None,
    adapt_steps: Annotated[int | None, typer.Option(help="Steps that adapt the dense model to the data.")] = None,
    search_steps: Annotated[int | None, typer.Option(help="Steps of the search for codes.")] = None,
    recover_steps: Annotated[int | None, typer.Option(help="Steps of recovery; recover.per says whose.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    preset: Annotated[str | None, typer.Option(help="A named configuration to start from.")] = None,
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="YAML; overrides the preset.")] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY.PATH=VALUE", help="Any setting; overrides all else; may be repeated."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; by default runs/NAME-TIME.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue --out, or the newest run of this name.")] = False,
    executor: Executor = "local",
    cpus: Cpus = None,
    gpus: Gpus = None,
    retries: Retries = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done, and what it takes.")] = False,
    debug: Debug = False,
) -> None:
    """Prune a model into experts and evaluate them."""
    flags = {
        "model": model,
        "data": data,
        "encoder": encoder,
        "router": router,
        "balancer": balancer,
        "granularity": granularity,
        "budget": budget,
        "pruner": pruner,
        "metrics": metric or None,
        "compare": _compared(compare or []),
        "experts": experts,
        "adapt.steps": adapt_steps,
        "search.steps": search_steps,
        "recover.steps": recover_steps,
        "seed": seed,
        "device": device,
    }
    given = {key: value for key, value in flags.items() if value is not None}
    for key in ("router", "balancer", "experts"):
        if pruner is not None and key in given:
            raise RequestError(f"--pruner {pruner} makes one expert for all prompts; drop it, or --{key} {given[key]}.")
    resources = resources_of(executor, cpus=cpus, gpus=gpus, retries=retries)
    if resources and processes() > 1:
        raise RequestError(
            f"--executor ray starts processes itself, but {processes()} were launched; start aptp run without a "
            "launcher, or drop it."
        )
    with checking():
        from aptp.config import load_config
        from aptp.host import default_host

        host = default_host()
        resolved = load_config(preset, config, given, assignments or ()).resolved(host)
        folder = _run_folder(resolved, out, resume)
    with working("the run", debug, folder):
        with checking():
            from aptp.models import find_model

            find_model(resolved.model)
        from aptp import harness
        from aptp.terminal import Terminal, show

        if dry_run:
            if rank():
                return
            with checking():
                plan = harness.plan(resolved, folder, resume=resume, host=host)
            _show_plan(plan, folder)
            return
        with started_on(resources, folder) as start:
            record = harness.run(resolved, folder, resume=resume, host=host, progress=Terminal(), elsewhere=start)
        harness.leave()
        if rank():
            return
        from aptp.report import summary_table

        show(summary_table(record), f"report: {folder / 'report.html'}")


def _compared(names: list[str]) -> list[str] | None:
    """The pruners of `--compare`: `None` where it was not given, nothing where `none` was."""
    if "none" in names and len(names) > 1:
        raise RequestError(f"--compare none stands alone, but {names} were given.")
    return None if not names else [name for name in names if name != "none"]


def _run_folder(config: RunConfig, out: Path | None, resume: bool) -> Path:
    name = (config.pruner or config.router).name
    if out is not None:
        if out.exists() and not out.is_dir():
            raise RequestError(f"--out {str(out)!r} is a file; name a folder.")
        return out
    if not resume:
        return RUNS / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    earlier = sorted(RUNS.glob(f"{name}-{'[0-9]' * 8}-{'[0-9]' * 6}"))
    if not earlier:
        raise RequestError(f"{str(RUNS)!r} has no {name} run to resume; name its folder with --out.")
    return earlier[-1]


def _show_plan(plan: Plan, folder: Path) -> None:
    from aptp.terminal import duration, show, table

    rows = [(stage.name, duration(stage.seconds), stage.what) for stage in plan.stages]
    total = duration(sum(stage.seconds for stage in plan.stages))
    show(
        table(("stage", "expected time", "what"), [*rows, ("in all", total, "")]),
        f"disk: about {plan.disk_mb:,.0f} MB, in {folder}",
        f"cache: {plan.cache}",
        f"memory: {plan.memory_mb:,.0f} MB",
    )
