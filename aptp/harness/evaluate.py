"""Generation through the routed pipeline, and the figures of a method."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from aptp.config import Choice
from aptp.core import distributed
from aptp.core.data import Sample
from aptp.core.files import write_json
from aptp.core.metric import GenerationBatch
from aptp.core.record import Result
from aptp.core.router import load_of, perplexity, serve
from aptp.core.timing import latencies_ms, repeated
from aptp.experts import size_of
from aptp.harness.clusters import nmi
from aptp.harness.data import fit
from aptp.harness.drawing import draw_dense, draw_pictures, is_whole, picture, save_picture
from aptp.harness.measure import BATCH, peak_memory_mb
from aptp.harness.processes import by_itself
from aptp.harness.training import generator_for
from aptp.harness.workspace import Workspace, make
from aptp.pipeline import RoutedPipeline
from aptp.report.measures import TO_DENSE
from aptp.report.wording import plural

ESTIMATE = 0.1
"""An estimate of an expert's cost further off than this share of the measured is worth a warning."""


@dataclass(frozen=True)
class Questions:
    """The held-out prompts that every method answers, with their real pictures; the same for all methods of a run."""

    samples: Sequence[Sample]
    index: Int[Tensor, "prompts"]
    """Their places in the validation split."""
    real: Path
    """The folder of their real pictures, as `000.png`, …"""
    dense: Path
    """The folder of the dense model's, drawn first."""

    @classmethod
    def draw(cls, work: Workspace) -> Questions:
        order = torch.randperm(len(work.validation), generator=generator_for(work.config.seed, "evaluation"))
        index = order[: work.config.evaluate.prompts]
        samples = [work.validation.samples[i] for i in index]
        return cls(samples, index, work.path("samples/real"), work.path("samples/dense"))

    @property
    def prompts(self) -> list[str]:
        return [sample.caption for sample in self.samples]

    @property
    def seeds(self) -> list[int]:
        return list(range(len(self.samples)))


def save_real(work: Workspace, questions: Questions) -> None:
    """The real pictures of the evaluation prompts."""
    for place, sample in enumerate(questions.samples):
        path = picture(questions.real, place)
        if not is_whole(path):
            save_picture(fit(sample, work.preparer.latent_size * work.pipeline.vae_scale_factor), path)


def metrics_of(work: Workspace, folder: Path, questions: Questions, experts: Sequence[int]) -> dict[str, float]:
    """Every configured metric over the pictures in `folder`; the main process's work.

    Distances, which are known by their floor, are measured to the dense model's pictures of the same prompts and seeds
    too (`…_to_dense`): how far these have moved from them, wherever the real ones are.
    """
    if not distributed.is_main():
        return {}
    with by_itself():
        figures: dict[str, float] = {}
        distances = []
        for choice, found in _metrics_of(work, folder, questions, experts, work.config.metrics, questions.real):
            figures |= found
            if any(name.endswith("_floor") for name in found):
                distances.append(choice)
        if distances and folder != questions.dense:
            for _, found in _metrics_of(work, folder, questions, experts, distances, questions.dense):
                figures |= {f"{name}{TO_DENSE}": v for name, v in found.items() if f"{name}_floor" in found}
    return figures


def _metrics_of(
    work: Workspace,
    folder: Path,
    questions: Questions,
    experts: Sequence[int],
    choices: Sequence[Choice],
    references: Path,
) -> list[tuple[Choice, dict[str, float]]]:
    """The figures of some metrics, with the pictures in `references` to hold those in `folder` against."""
    metrics = [make(work.host, "metric", choice) for choice in choices]
    count, size = len(questions.samples), 64
    with work.progress.task(f"measuring {folder.name} against {references.name}", count) as advance:
        for start in range(0, count, size):
            places = range(start, min(start + size, count))
            batch = GenerationBatch(
                _pictures(folder, places).to(work.device),
                [questions.prompts[i] for i in places],
                _pictures(references, places).to(work.device),
                torch.tensor([experts[i] for i in places]),
            )
            for metric in metrics:
                metric.update(batch)
            advance(len(places))
    return [(choice, metric.compute()) for choice, metric in zip(choices, metrics, strict=True)]


def _pictures(folder: Path, places: Sequence[int]) -> Tensor:
    arrays = [np.asarray(Image.open(picture(folder, place)).convert("RGB")) for place in places]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)


def dense_results(work: Workspace, pipe: RoutedPipeline, questions: Questions) -> list[Result]:
    """The dense model's row, and one for each other number of sampling steps that the run asks for."""
    dense = _dense_result(work, pipe, questions)
    return [
        dense,
        *(_with_steps(work, pipe, questions, dense, n) for n in dict.fromkeys(work.config.evaluate.dense_steps)),
    ]


def _dense_result(work: Workspace, pipe: RoutedPipeline, questions: Questions) -> Result:
    experts = [-1] * len(questions.samples)
    draw_dense(work, pipe, questions.dense, questions.prompts, questions.seeds)
    size = work.sample_size, work.text_tokens
    return Result(
        name="dense",
        fraction=1.0,
        macs=work.cost_by("macs").dense,
        parameters=work.cost_by("params").dense,
        training_steps=0,
        search_steps=0,
        training_seconds=0.0,
        peak_memory_mb=peak_memory_mb(work.denoiser, work.dense, *size),
        disk_mb=size_of(work.dense) / 1e6,
        teacher_error=0.0,
        metrics=metrics_of(work, questions.dense, questions, experts),
        samples="samples/dense",
    )


def _with_steps(work: Workspace, pipe: RoutedPipeline, questions: Questions, dense: Result, steps: int) -> Result:
    experts, folder = [-1] * len(questions.samples), f"samples/dense-{steps}"
    draw_dense(work, pipe, work.path(folder), questions.prompts, questions.seeds, steps)
    figures = {
        "name": f"dense, {plural(steps, 'step')}",
        "peak_memory_mb": None,
        "teacher_error": None,
        "fraction": steps / work.config.evaluate.steps,
        "metrics": metrics_of(work, work.path(folder), questions, experts),
        "samples": folder,
        "sampling_steps": steps,
    }
    return dense.model_copy(update=figures)


def method_result(
    work: Workspace,
    pipe: RoutedPipeline,
    questions: Questions,
    name: str,
    route: Int[Tensor, "validation"],
    teacher_error: float,
    steps: int,
    seconds: float,
) -> Result:
    """A pruned method's row: its figures are means over the prompts, each on its own expert.

    `steps` are those of its recovery, `seconds` those of its search and recovery.
    """
    experts = route[questions.index].tolist()
    folder = work.path(f"samples/{name}")
    draw_pictures(work, pipe, folder, questions.prompts, questions.seeds, experts)
    share = route[questions.index].bincount(minlength=len(pipe.bundle.fractions)).double() / len(experts)
    gates = torch.stack([a.gates for a in work.architectures])
    size = work.sample_size, work.text_tokens

    def mean(of_expert) -> float:
        return sum(float(s) * of_expert(i) for i, s in enumerate(share) if s)

    return Result(
        name=name,
        fraction=float((work.cost_model.fraction(gates) * share).sum()),
        macs=float((work.cost_by("macs").cost(gates) * share).sum()),
        parameters=float((work.cost_by("params").cost(gates) * share).sum()),
        training_steps=steps,
        search_steps=work.config.search.steps if work.learns else 0,
        training_seconds=seconds,
        peak_memory_mb=mean(lambda i: peak_memory_mb(work.denoiser, pipe.expert(i), *size)),
        disk_mb=sum(path.stat().st_size for path in pipe.bundle.weights) / 1e6,
        teacher_error=teacher_error,
        metrics=metrics_of(work, folder, questions, experts),
        samples=f"samples/{name}",
    )


def measure_latency(work: Workspace, rows: Sequence[tuple[Result, RoutedPipeline, Sequence[int]]]) -> None:
    """Fill in the latency of every row, all models of the run taking turns.

    Args:
        rows: a method's figures, its pipeline, and the expert of each evaluation prompt (−1 is the dense model).
    """
    models: dict[tuple[Path, int], torch.nn.Module] = {}
    for _, pipe, experts in rows:
        models |= {(pipe.run, i): work.dense if i < 0 else pipe.expert(i) for i in set(experts)}
    inputs = repeated(work.example_inputs, BATCH)
    times = distributed.on_main(lambda: latencies_ms(list(models.values()), inputs))
    of = dict(zip(models, times, strict=True))
    for result, pipe, experts in rows:
        result.latency_ms = fmean(of[pipe.run, i] for i in experts)


def check_costs(work: Workspace, pipe: RoutedPipeline) -> None:
    """Compare the cost model with what the experts themselves cost, where the budget's estimator can measure that."""
    record, budget = work.record, work.record.budget
    models = [work.dense, *(pipe.expert(expert.index) for expert in record.experts)]
    estimator = make(work.host, "budget", work.config.budget)
    measured = distributed.on_main(lambda: estimator.measured(models, work.example_inputs))
    if measured is None or budget is None:
        return
    dense, *costs = measured
    for expert, cost in zip(record.experts, costs, strict=True):
        expert.measured = cost / dense
    budget.error = max(abs(e.fraction * dense / cost - 1) for e, cost in zip(record.experts, costs, strict=True))
    if budget.error > ESTIMATE:
        work.warn(
            f"budget {budget.estimator!r} is {budget.error:.0%} off what an expert really costs; a "
            "quieter machine may measure better."
        )


def routing_figures(work: Workspace, bias: Float[Tensor, "experts"], fractions: Sequence[float]) -> tuple[Tensor, dict]:
    """The route of every validation prompt, and what the record says of it."""
    prompts = work.validation.prompts()
    scores = work.scores(work.validation)
    route = serve(scores, bias)
    costs = torch.tensor(fractions, dtype=torch.float64)[route]
    kinds: dict[str, dict[str, int]] = {}
    cost_of: dict[str, float] = {}
    for kind in sorted({kind for kind in work.validation.kinds if kind is not None}):
        mine = torch.tensor([other == kind for other in work.validation.kinds])
        counts = route[mine].bincount(minlength=len(fractions))
        kinds[kind] = {str(i): int(count) for i, count in enumerate(counts)}
        cost_of[kind] = float(costs[mine].mean())
    examples: dict[str, list[str]] = {str(i): [] for i in range(len(fractions))}
    for text, expert in zip(prompts.text, route.tolist(), strict=True):
        if len(mine := examples[str(expert)]) < 6 and text not in mine:
            mine.append(text)
    agreement = nmi(route, work.validation.kinds) if len(fractions) > 1 else None
    return route, {
        "perplexity": perplexity(load_of(route, len(fractions))),
        "perplexity_without_bias": perplexity(load_of(serve(scores, torch.zeros_like(bias)), len(fractions))),
        "load": load_of(route, len(fractions)).tolist(),
        "mean_cost": float(costs.mean()),
        "kinds": kinds,
        "mean_cost_of_kind": cost_of,
        "examples": examples,
        **({} if agreement is None else {"nmi": agreement}),
    }


def draw_gallery(
    work: Workspace, pipe: RoutedPipeline, questions: Questions, route: Tensor, others: dict[str, RoutedPipeline]
) -> None:
    """A few prompts of each kind as every model of the run draws them, for the report."""
    chosen: list[int] = []
    for kind in sorted({sample.kind or "" for sample in questions.samples}):
        chosen += [i for i, s in enumerate(questions.samples) if (s.kind or "") == kind][: work.config.evaluate.gallery]
    if not any(sample.kind for sample in questions.samples):
        chosen = list(range(min(5 * work.config.evaluate.gallery, len(questions.samples))))
    if not chosen:
        return
    samples = [questions.samples[i] for i in chosen]
    columns: list[dict] = [{"name": "real", "folder": "gallery/real"}]
    for place, i in enumerate(chosen) if distributed.is_main() else ():
        save_picture(Image.open(picture(questions.real, i)), picture(work.path("gallery/real"), place))
    models = [("dense", "dense", pipe, -1)]
    models += [(f"expert {k}", f"expert-{k:02d}", pipe, k) for k in range(len(pipe.bundle.fractions))]
    models += [(name, name, other, 0) for name, other in others.items()]
    for name, folder, drawer, expert in models:
        path = f"gallery/{folder}"
        seeds = [questions.seeds[i] for i in chosen]
        draw_pictures(work, drawer, work.path(path), [s.caption for s in samples], seeds, [expert] * len(samples))
        columns.append({"name": name, "folder": path} | ({"expert": expert} if folder.startswith("expert-") else {}))
    prompts = [
        {"prompt": s.caption, "kind": s.kind, "seed": questions.seeds[i], "expert": int(route[questions.index[i]])}
        for i, s in zip(chosen, samples, strict=True)
    ]
    if distributed.is_main():
        write_json(work.path("gallery/gallery.json"), json.loads(json.dumps({"prompts": prompts, "columns": columns})))
