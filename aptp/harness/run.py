"""A run from its configuration to its report; every stage leaves an artifact and resumes from it."""

from __future__ import annotations

import errno
import os
import platform
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from aptp.bundle import MODEL, check_experts, load_bundle, save_router
from aptp.config import RunConfig
from aptp.core import distributed
from aptp.core.child import Start
from aptp.core.errors import RequestError
from aptp.core.files import settle, write_text
from aptp.core.progress import Progress, Quiet
from aptp.core.record import Budget, Expert, Record, Result
from aptp.core.router import PromptBatch
from aptp.core.timing import processor
from aptp.harness import evaluate
from aptp.harness.adapt import adapt
from aptp.harness.checkpoint import Log
from aptp.harness.lists import check_list, write_lists
from aptp.harness.processes import alone, join
from aptp.harness.recover import make_experts, recover
from aptp.harness.search import Found, search
from aptp.harness.selection import check_counts
from aptp.harness.teacher import exam_figures
from aptp.harness.training import generator_for
from aptp.harness.workspace import Workspace
from aptp.host import Host
from aptp.kept import check_folder
from aptp.models import pipeline_fingerprint
from aptp.pipeline import RoutedPipeline
from aptp.report import write_report

LIBRARIES = (
    "aptp",
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "POT",
    "faiss-cpu",
    "torchmetrics",
    "safetensors",
    "pillow",
)
KEPT = 4096
"""Different training prompts that are kept with the router, at most."""
MISSED = 0.01
"""A calibrated cost further than this share from the target is worth a warning."""
LOCK_SECONDS = 3.0
"""How long a process that was killed may take to let go of its run."""
UNLOCKABLE = {errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}
"""What file systems say that know no locks."""
PICTURES = ("samples", "gallery", "baselines/*/samples")
"""Where the pictures of a run lie, which were not waited for as they were drawn."""


def run(
    config: RunConfig,
    out: Path,
    *,
    resume: bool = False,
    host: Host,
    progress: Progress,
    elsewhere: Start | None = None,
) -> Record:
    """Carry out a resolved configuration in the directory `out`.

    Of several processes that were launched together, each calls this. The main one writes what the run leaves, in its
    own `out`, which the others have to see. One process may have what can be done apart started `elsewhere`.

    Raises:
        RequestError: before any long work, if the request cannot be carried out or `out` belongs to another one.
    """
    config = config.settled()
    join(config)
    out = distributed.shared(out)
    record = distributed.on_main(lambda: _record(config, out, resume))
    found, main = _found(out), distributed.is_main()
    if record.status == "done":
        if main:
            write_report(out)
        return record
    record.status, record.error, record.warnings = "running", None, []
    work = Workspace.open(config, out, host, progress if main else Quiet(), record)
    work.elsewhere = elsewhere
    model = pipeline_fingerprint(work.pipeline)
    if record.model not in (None, model):
        raise RequestError(f"model {config.model!r} has changed since {str(out)!r} was begun; choose another --out.")
    record.model = model
    costs = work.cost_model.fingerprint
    if record.costs not in (None, costs):
        raise RequestError(
            f"budget {config.budget.name!r} finds other costs than when {str(out)!r} was begun (another device or "
            "version, or what it measured then is gone from the cache); choose another --out."
        )
    record.costs = costs
    with ExitStack() as held:
        distributed.on_main(lambda: _hold(work, found, held))
        _carry_out(work)
    return record


def _found(out: Path) -> list[bytes | None]:
    """What says whose the directory is and how far its run has come."""
    return [file.read_bytes() if file.is_file() else None for file in (out / "config.yaml", out / "record.json")]


def _hold(work: Workspace, found: list[bytes | None], held: ExitStack) -> None:
    """Keep other processes from carrying out the run until `held` is closed.

    Raises:
        RequestError: if one is at it, or was since the directory was found as it is in `found`.
    """
    work.out.mkdir(parents=True, exist_ok=True)
    try:
        held.enter_context(FileLock(work.out / ".lock", timeout=LOCK_SECONDS))
    except Timeout as error:
        raise RequestError(f"the run in {str(work.out)!r} is going on; wait for it or stop it.") from error
    except OSError as error:
        if error.errno not in UNLOCKABLE:
            raise
        work.warn(
            f"{str(work.out)!r} cannot be locked ({error.strerror}): see that no other process carries out this run."
        )
    if _found(work.out) != found:
        raise RequestError(f"the run in {str(work.out)!r} was going on until now; start again to see what it left.")


def _carry_out(work: Workspace) -> None:
    """All stages, and what is kept of them."""
    record, out, main = work.record, work.out, distributed.is_main()
    if main:
        write_text(work.path("config.yaml"), work.config.to_yaml())
    work.keep()
    if lonely := alone():
        work.warn(lonely)
    trackers = None
    try:
        trackers = work.trackers
        _stages(work)
        if main:
            for folder in (folder for place in PICTURES for folder in out.glob(place)):
                settle(folder)
        if trackers:
            trackers.end(failed=False)
    except BaseException as error:
        record.status, record.error = "failed", f"{type(error).__name__}: {error}"
        with suppress(OSError):  # a full disk, which may be the very error
            work.keep()
        if trackers:
            with suppress(Exception):  # the run's own error is what has to be told
                trackers.end(failed=True)
        raise
    record.status, record.error, record.finished = "done", None, _now()
    work.keep()
    if main:
        write_report(out)
        work.host.hook.aptp_run_end(record=record)


def _record(config: RunConfig, out: Path, resume: bool) -> Record:
    """The record of the run in `out`, which goes on, or a new one."""
    check_folder(config, out, resume)
    if (out / "record.json").exists():
        record = Record.load(out / "record.json")
        if record.status == "done":
            check_experts(out, len(record.experts))
        return record
    versions = {"python": platform.python_version()}
    for library in LIBRARIES:
        versions[library] = metadata.version(library)
    hardware = {
        "machine": platform.machine(),
        "system": platform.system(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "processes": distributed.processes(),
    }
    return Record(started=_now(), config=config.model_dump(mode="json"), versions=versions, hardware=hardware)


def _stages(work: Workspace) -> None:
    record, config = work.record, work.config
    _prepare(work)
    questions = evaluate.Questions.draw(work)
    method = _method(work)
    if distributed.is_main():
        evaluate.save_real(work, questions)
    with _timed(work, "evaluate"):
        dense, *fewer = evaluate.dense_results(work, method.pipe, questions)
        rows = [(dense, method.pipe, [-1] * len(questions.samples)), _row(work, method, questions)]
    statics, others = [], {}
    for choice in config.compare:
        static = work.beside(config.static(choice), work.path(f"baselines/{choice.name}"))
        other = _method(static)
        others[choice.name] = other.pipe
        with _timed(static, "evaluate"):
            rows.append(_row(static, other, questions))
        statics.append(static)
    with _timed(work, "latency"):
        evaluate.measure_latency(work, rows)
        for one, (_, pipe, _) in zip((work, *statics), rows[1:], strict=True):
            evaluate.check_costs(one, pipe)
    record.results = [dense, *fewer, rows[1][0]]
    for static, (result, _, _) in zip(statics, rows[2:], strict=True):
        static.record.results = [result]
        static.record.status, static.record.finished = "done", _now()
        static.keep()
        inside = static.out.relative_to(work.out).as_posix()
        record.results.append(result.model_copy(update={"samples": f"{inside}/{result.samples}"}))
    with _timed(work, "gallery"):
        evaluate.draw_gallery(work, method.pipe, questions, method.route, others)


def _prepare(work: Workspace) -> None:
    config, record, adapted = work.config, work.record, work.path(MODEL).is_dir()
    with _timed(work, "prepare"), distributed.main_first():
        source = work.dataset.fingerprint()
        if record.data.get("fingerprint", source) != source:
            raise RequestError(f"the data {config.data.name!r} has changed since {str(work.out)!r} was begun.")
        if not adapted:
            _announce(work, source)
        train = work.preparer.latents(work.chosen.train, source, "training", config.prepare.flips).samples
        validation = work.preparer.latents(work.chosen.validation, source, "held-out").samples
        check_counts(config, train, validation)
        check_list(record.data, "training", train)
        check_list(record.data, "validation", validation)
        skipped = dict(work.preparer.skipped)
    if config.adapt.steps:
        with _timed(work, "adapt"):
            if adapted:
                _tell_of_adapting(work)
            adapt(work, train, source)
    with _timed(work, "prepare"), distributed.main_first():
        if adapted:
            _announce(work, source)
        work.train = work.preparer.pictures(train, source, "training", config.prepare.flips)
        work.validation = work.preparer.pictures(validation, source, "held-out")
    skipped = work.chosen.skipped | skipped
    lists = distributed.on_main(lambda: write_lists(work.out, train, validation, skipped))
    record.data = {"fingerprint": source, **lists}
    if skipped:
        name, reason = next(iter(skipped.items()))
        work.warn(f"left out of the data: {len(skipped)}, listed in data/skipped.jsonl; the first, {name!r}: {reason}.")


def _tell_of_adapting(work: Workspace) -> None:
    """Have observers and trackers of a run that goes on told of the steps that were done, as `train` has for others."""
    steps = work.config.adapt.steps
    if distributed.is_main():
        for step, values in enumerate(Log(work.path("logs/adapt.jsonl"), steps).kept):
            work.step_ended("adapt", step, steps, values)


def _announce(work: Workspace, source: str) -> None:
    """Say what is to be encoded, if anything is; raise `RequestError` where there is no room for it."""
    need = work.need(source)
    need.check()
    if need.size:
        work.progress.say(f"{need}.")


class _Method(NamedTuple):
    """The pipeline that serves a method's experts, the route of every validation prompt, and the steps of recovery."""

    pipe: RoutedPipeline
    route: Tensor
    steps: int


def _method(work: Workspace) -> _Method:
    """Search, slice and recover."""
    record = work.record
    with _timed(work, "search"):
        found = search(work)
        work.architectures = found.architectures
    fractions = [float(work.cost_model.fraction(a.gates)) for a in found.architectures]
    if distributed.is_main() and not work.sliced:
        with _timed(work, "slice"):
            make_experts(work, found)
            _save_router(work, found, fractions)
    distributed.wait()
    with _timed(work, "recover"):
        steps = recover(work, found.architectures, found.bias)
    pipe = RoutedPipeline(work.out, load_bundle(work.out, work.host, work.encoder), work.pipeline)
    route, record.routing = evaluate.routing_figures(work, found.bias, fractions)
    with _timed(work, "evaluate"):
        record.routing |= exam_figures(work, pipe, route)
    _describe(work, found, fractions)
    work.keep()
    return _Method(pipe, route, steps)


def _save_router(work: Workspace, found: Found, fractions: list[float]) -> None:
    config, train = work.config, work.train
    kept = torch.randperm(len(train.captions), generator=generator_for(config.seed, "kept prompts"))[:KEPT]
    save_router(
        work.path("router"),
        router=work.router,
        space=work.space,
        router_choice=config.router,
        balancer=config.balancer,
        encoder_choice=config.encoder,
        encoder=work.encoder,
        relaxation=config.relaxation,
        training=PromptBatch([train.captions[i] for i in kept], train.embeds[kept]),
        bias=found.bias,
        threshold=found.threshold,
        fractions=fractions,
        load=found.load,
        budget=config.budget,
        model=config.model,
        model_fingerprint=pipeline_fingerprint(work.pipeline),
        denoiser=work.denoiser,
    )


def _describe(work: Workspace, found: Found, fractions: list[float]) -> None:
    record = work.record
    target = work.config.budget.target
    record.budget = Budget(
        estimator=work.config.budget.name,
        unit=work.cost_model.unit,
        dense=work.cost_model.dense,
        target=target,
        floor=work.cost_model.floor,
        uncalibrated=found.uncalibrated,
        expected=found.expected,
        measured=record.routing["mean_cost"],
        sample_size=work.sample_size,
        text_tokens=work.text_tokens,
    )
    parameters = work.cost_by("params")
    record.experts = [
        Expert(
            index=index,
            fraction=fractions[index],
            cost=fractions[index] * work.cost_model.dense,
            parameters=int(parameters.cost(architecture.gates)),
            training_load=float(found.load[index]),
            validation_load=record.routing["load"][index],
            kept={
                f"{s.path}:{s.kind}": [len(k), s.units]
                for s, k in zip(work.space.sites, architecture.kept, strict=True)
            },
        )
        for index, architecture in enumerate(found.architectures)
    ]
    if abs(found.expected / target - 1) > MISSED:
        own = work.pruner is not None and not work.pruner.takes_target
        why = "what this pruner, which takes no target, costs" if own else "the nearest level that these gates have"
        work.warn(f"the budget is {target:g}, and {found.expected:.3f} {why}.")


def _row(work: Workspace, method: _Method, questions: evaluate.Questions) -> tuple[Result, RoutedPipeline, list[int]]:
    """A method's figures, all but its latency, with its pipeline and the expert of each evaluation prompt."""
    seconds, name = work.record.seconds, work.method
    spent = seconds["search"] + seconds["recover"]
    error = work.record.routing["oracle"]["teacher_error"]
    result = evaluate.method_result(work, method.pipe, questions, name, method.route, error, method.steps, spent)
    return result, method.pipe, method.route[questions.index].tolist()


@contextmanager
def _timed(work: Workspace, stage: str) -> Iterator[None]:
    """Add a stage's wall time to the record and save it; a resumed stage adds to what it took before."""
    start, seconds = time.monotonic(), work.record.seconds
    before = seconds.get(stage, 0.0)

    def count() -> None:
        seconds[stage] = round(before + time.monotonic() - start, 3)

    work.count_time = count  # at once, too, for a run that is killed
    try:
        yield
    finally:
        work.count_time = None
        count()
        work.keep()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
