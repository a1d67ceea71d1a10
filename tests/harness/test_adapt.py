"""Fine-tuning of the dense model before it is pruned."""

from __future__ import annotations

import pytest
import torch

from aptp.harness import run
from aptp.harness.adapt import adapt
from aptp.harness.workspace import Workspace
from aptp.models import load_pipeline, pipeline_fingerprint


@pytest.fixture
def adapted(open_work) -> Workspace:
    work = open_work(adapt={"steps": 2, "batch": 4, "rate": 1e-2})
    work.pipeline = load_pipeline(work.config.model, work.device)  # it is trained in place
    adapt(work, list(work.dataset.samples("train"))[:8], "eight")
    return work


def test_trains_denoiser_and_text_encoder_and_nothing_else(adapted: Workspace, base: Workspace) -> None:
    for name in ("unet", "text_encoder"):
        before, after = (getattr(work.pipeline, name).state_dict() for work in (base, adapted))
        assert any(not torch.equal(before[key], after[key]) for key in before), name
    before, after = base.pipeline.vae.state_dict(), adapted.pipeline.vae.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert len(adapted.path("logs/adapt.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("dropout", [0.0, 1.0])
def test_captions_are_dropped(open_work, monkeypatch: pytest.MonkeyPatch, dropout: float) -> None:
    work = open_work(adapt={"steps": 1, "batch": 4, "rate": 1e-9}, recover={"caption_dropout": dropout})
    work.pipeline = load_pipeline(work.config.model, work.device)
    texts, example = [], work.noiser.example

    def spy(noised, rows, text):
        texts.append(text["encoder_hidden_states"])
        return example(noised, rows, text)

    monkeypatch.setattr(work.noiser, "example", spy)
    nothing = work.denoiser.unconditional(work.pipeline, work.sample_size)["encoder_hidden_states"].detach()
    adapt(work, list(work.dataset.samples("train"))[:8], "eight")
    (text,) = texts
    assert [torch.allclose(row, nothing[0], atol=1e-5) for row in text] == [bool(dropout)] * 4


def test_goes_on_with_the_saved_pipeline(adapted: Workspace, base: Workspace) -> None:
    kept = pipeline_fingerprint(adapted.pipeline)
    assert kept != pipeline_fingerprint(base.pipeline)
    assert not any(parameter.requires_grad for parameter in adapted.dense.parameters())
    assert adapted.preparer.pipeline is adapted.pipeline
    adapted.pipeline = base.pipeline
    adapt(adapted, [], "not read")  # it is there: nothing is trained
    assert pipeline_fingerprint(adapted.pipeline) == kept
    assert not list(adapted.out.glob(".*"))


def test_a_run_that_goes_on_tells_of_its_steps_again(open_work, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trackers count on from them."""
    told: list[list[tuple]] = []
    monkeypatch.setattr(Workspace, "step_ended", lambda work, *step: told[-1].append(step))
    for _ in range(2):
        work = open_work(adapt={"steps": 2, "batch": 4})
        work.pipeline = load_pipeline(work.config.model, work.device)
        told.append([])
        run.__globals__["_prepare"](work)
    first, again = told
    assert [step[:3] for step in first] == [("adapt", 0, 2), ("adapt", 1, 2)]
    assert [step[:3] for step in again] == [step[:3] for step in first]
    assert [step[3] for step in again] == [pytest.approx(step[3], abs=1e-6) for step in first]
