"""Fine-tuning of the dense model before it is pruned."""

from __future__ import annotations

import pytest
import torch

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


def test_goes_on_with_the_saved_pipeline(adapted: Workspace, base: Workspace) -> None:
    kept = pipeline_fingerprint(adapted.pipeline)
    assert kept != pipeline_fingerprint(base.pipeline)
    assert not any(parameter.requires_grad for parameter in adapted.dense.parameters())
    assert adapted.preparer.pipeline is adapted.pipeline
    adapted.pipeline = base.pipeline
    adapt(adapted, [], "not read")  # it is there: nothing is trained
    assert pipeline_fingerprint(adapted.pipeline) == kept
    assert not list(adapted.out.glob(".*"))
