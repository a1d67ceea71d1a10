"""Generation and figures."""

from __future__ import annotations

import math
from statistics import fmean

import numpy as np
import pytest
import torch
from scipy.stats import entropy

import aptp
from aptp.core.router import scores_of
from aptp.harness import evaluate
from aptp.harness.evaluate import Questions, measure_latency
from aptp.harness.measure import peak_memory_mb
from aptp.harness.workspace import Workspace
from aptp.pipeline import RoutedPipeline


@pytest.fixture(scope="module")
def pipe(finished) -> RoutedPipeline:
    return aptp.load(finished.out, device="cpu")


def test_questions_are_drawn_by_seed_alone(open_work) -> None:
    first, second = (Questions.draw(open_work(router={"name": "constant"}, experts=1)) for _ in range(2))
    other = Questions.draw(open_work(seed=1))
    assert first.prompts == second.prompts != other.prompts
    assert len(first.prompts) == len(set(first.index.tolist())) == 12


def test_recorded_pictures_are_those_of_the_served_pipeline(finished, base: Workspace, pipe: RoutedPipeline) -> None:
    """Who loads the run and asks for the same prompts with the same seeds gets the pictures that were measured."""
    from PIL import Image

    questions = Questions.draw(base)
    drawn = pipe(questions.prompts[:4], seed=questions.seeds[:4], num_inference_steps=2, guidance_scale=3.0)
    for place, image in enumerate(drawn.images):
        kept = Image.open(finished.out / f"samples/contrastive+sinkhorn/{place:03d}.png")
        assert np.abs(np.asarray(kept).astype(int) - np.asarray(image).astype(int)).max() <= 1


def test_distances_are_measured_to_the_dense_models_pictures_too(finished) -> None:
    """By the definition of each, over the files that the run left; a score is no distance and has no such figure."""
    from PIL import Image

    from aptp.plugins.metrics._features import load_features
    from aptp.plugins.metrics.cmmd import squared_mmd
    from aptp.plugins.metrics.frechet import frechet_distance

    def embeds(folder: str) -> torch.Tensor:
        files = sorted((finished.out / folder).glob("*.png"))
        return load_features("evaluator").images(
            torch.from_numpy(np.stack([np.asarray(Image.open(f)) for f in files])).permute(0, 3, 1, 2)
        )

    dense, *pruned = finished.record.results
    assert not any("to_dense" in name for name in dense.metrics)
    assert len(pruned) == 2
    for result in pruned:
        assert {name for name in result.metrics if "to_dense" in name} == {
            "cmmd_evaluator_to_dense",
            "frechet_evaluator_to_dense",
        }
        mine, taught = embeds(result.samples).double(), embeds("samples/dense").double()
        assert result.metrics["cmmd_evaluator_to_dense"] == pytest.approx(squared_mmd(mine, taught), rel=1e-6)
        assert result.metrics["frechet_evaluator_to_dense"] == pytest.approx(frechet_distance(mine, taught), rel=1e-4)


def test_figures_of_routing_agree_with_one_another(finished) -> None:
    routing, experts = finished.record.routing, finished.record.experts
    assert 1 <= routing["perplexity"] <= 3
    assert sum(routing["load"]) == pytest.approx(1)
    costs = torch.tensor([expert.fraction for expert in experts])
    assert routing["mean_cost"] == pytest.approx(float(torch.tensor(routing["load"]) @ costs))
    counts = torch.tensor([list(counts.values()) for counts in routing["kinds"].values()])
    assert (counts.sum(0) / counts.sum()).tolist() == pytest.approx(routing["load"])
    for kind, row in zip(routing["kinds"], counts, strict=True):
        assert routing["mean_cost_of_kind"][kind] == pytest.approx(float(row / row.sum() @ costs))


def test_a_row_is_the_mean_over_the_prompts_of_each_ones_own_expert(
    finished, base: Workspace, pipe: RoutedPipeline
) -> None:
    row, experts = finished.record.results[1], finished.record.experts
    size = base.sample_size, base.text_tokens
    served = [route.expert for route in pipe.route(Questions.draw(base).prompts)]
    assert len(set(np.bincount(served, minlength=3))) > 1, "uneven, or any weights would do"

    def mean(of_expert) -> float:
        return pytest.approx(fmean(of_expert(i) for i in served), rel=1e-6)

    assert row.fraction == mean(lambda i: experts[i].fraction)
    assert row.macs == mean(lambda i: experts[i].cost)
    assert row.parameters == mean(lambda i: sum(p.numel() for p in pipe.expert(i).parameters()))
    assert row.peak_memory_mb == mean(lambda i: peak_memory_mb(base.denoiser, pipe.expert(i), *size))
    files = list((finished.out / "experts").rglob("*.safetensors"))
    assert len(files) == 3
    assert row.disk_mb == pytest.approx(sum(len(file.read_bytes()) for file in files) / 1e6)


def test_latency_is_the_mean_over_the_prompts_of_each_ones_own_expert(
    finished, base: Workspace, pipe: RoutedPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With as many milliseconds as a model has weights, whatever the order in which models are timed."""

    def weights(model: torch.nn.Module) -> int:
        return sum(p.numel() for p in model.parameters())

    monkeypatch.setattr(evaluate, "latencies_ms", lambda models, inputs: [float(weights(model)) for model in models])
    static = aptp.load(finished.out / "baselines/magnitude", device="cpu")
    results = [result.model_copy(update={"latency_ms": None}) for result in finished.record.results]
    pipes, experts = (pipe, pipe, static), ([-1] * 6, [1, 0, 0, 2, 0, 0], [0] * 6)
    measure_latency(base, list(zip(results, pipes, experts, strict=True)))
    zero, one, two = (weights(pipe.expert(i)) for i in range(3))
    assert len({zero, one, two, weights(static.expert(0)), weights(base.dense)}) == 5
    assert [result.latency_ms for result in results] == pytest.approx(
        [weights(base.dense), (4 * zero + one + two) / 6, weights(static.expert(0))]
    )


def test_experts_in_use_are_counted_with_the_serving_bias_and_without(
    finished, base: Workspace, pipe: RoutedPipeline
) -> None:
    bundle = pipe.bundle
    scores = scores_of(bundle.router, base.validation.prompts()).numpy()
    in_use = [math.exp(entropy(np.bincount((scores + bias).argmax(1)))) for bias in (bundle.own_bias.numpy(), 0.0)]
    assert in_use[0] != pytest.approx(in_use[1])
    told = [finished.record.routing[key] for key in ("perplexity", "perplexity_without_bias")]
    assert told == pytest.approx(in_use)
