"""Generation and figures."""

from __future__ import annotations

import pytest
import torch

import aptp
from aptp.harness.evaluate import Questions
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
    import numpy as np
    from PIL import Image

    questions = Questions.draw(base)
    drawn = pipe(questions.prompts[:4], seed=questions.seeds[:4], num_inference_steps=2, guidance_scale=3.0)
    for place, image in enumerate(drawn.images):
        kept = Image.open(finished.out / f"samples/contrastive+sinkhorn/{place:03d}.png")
        assert np.abs(np.asarray(kept).astype(int) - np.asarray(image).astype(int)).max() <= 1


def test_distances_are_measured_to_the_dense_models_pictures_too(finished) -> None:
    """By the definition of each, over the files that the run left; a score is no distance and has no such figure."""
    import numpy as np
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
