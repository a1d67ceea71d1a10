"""A whole run on a small Stable Diffusion 3 checkpoint: joint attention, three text encoders' places, flow matching."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import SD3Transformer2DModel

import aptp
from aptp.config import RunConfig, load_config
from aptp.core.progress import Quiet
from aptp.core.record import Record
from aptp.harness import plan, run
from aptp.harness.workspace import Workspace
from aptp.host import default_host


@pytest.fixture(scope="module")
def config(sd3_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    flags = {
        "model": str(sd3_folder),
        "data": {"name": "scenes", "train": 24, "validation": 10},
        "encoder": {"name": "minilm", "max_tokens": 24},
        "budget": 0.7,
        "experts": 2,
        "prepare.cache": str(tmp_path_factory.mktemp("cache")),
        "adapt": {"steps": 2, "batch": 4},
        "search": {"steps": 6, "batch": 4},
        "recover": {"steps": 4, "batch": 4, "caption_dropout": 0.5},
        "metrics": ["cmmd"],
        "evaluate": {"prompts": 4, "steps": 2, "batch": 4, "gallery": 1},
        "compare": ["block-influence"],
    }
    return load_config(flags=flags).resolved(default_host())


@pytest.fixture(scope="module")
def done(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Record]:
    out = tmp_path_factory.mktemp("done") / "run"
    return out, run(config, out, host=default_host(), progress=Quiet())


@pytest.mark.slow
def test_a_whole_run(done) -> None:
    out, record = done
    assert record.status == "done"
    assert [result.name for result in record.results] == ["dense", "contrastive+sinkhorn", "block-influence"]
    assert record.budget.expected == pytest.approx(0.7, abs=0.05)
    assert any(name.endswith(":joint_attention_heads") for name in record.experts[0].kept)
    steps = [json.loads(line) for line in (out / "logs/search.jsonl").read_text().splitlines()]
    assert len(steps) == 6
    assert all(0 < step["cost"] <= 1 and step["blocks"] >= 0 for step in steps)
    assert "transformer block with a stripe for each of its sites: heads of joint attention" in " ".join(
        (out / "report.html").read_text().split()
    )


@pytest.mark.slow
def test_what_it_leaves_draws_as_the_stock_pipeline_does(done) -> None:
    pipe = aptp.load(done[0], device="cpu")
    prompts = ["a red star", "the word STOP"]
    drawing = {"num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "np"}
    drawn = pipe(prompts, seed=[0, 1], experts=[1, 1], **drawing).images
    expert = aptp.load_expert(done[0] / "experts/01")
    assert type(expert) is SD3Transformer2DModel
    pipe.base.transformer = expert
    noise = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    expected = pipe.base(prompts, generator=noise, **drawing).images
    np.testing.assert_allclose(np.stack(drawn), expected, atol=1e-5)


def test_an_example_is_told_the_times_of_its_noise_whatever_was_drawn_before(config, tmp_path: Path) -> None:
    record = Record(started="", config={}, versions={}, hardware={})
    work = Workspace.open(config, tmp_path, default_host(), Quiet(), record)
    assert work.text_tokens == work.pipeline.tokenizer.model_max_length + 256
    latents, text = torch.zeros(5, 16, 8, 8), work.preparer.text(list("abcde"), "some").whole()
    table = work.pipeline.scheduler.timesteps.clone()
    before, after = [], []
    for examples in (before, after):
        for timestep in (None, 499):
            example = work.noiser(latents, text, torch.Generator().manual_seed(0), timestep)
            sigma = example.timesteps / 1000
            torch.testing.assert_close(example.diffused.noisy, example.diffused.target * sigma.view(-1, 1, 1, 1))
            assert torch.isin(example.timesteps, table).all()
            examples.append(example.timesteps)
        work.pipeline("a", num_inference_steps=2, output_type="latent")
    assert torch.equal(torch.stack(before), torch.stack(after))
    assert before[1].tolist() == [750.0] * 5  # halfway through the steps, by a shift of 3


def test_a_plan_is_made(config, tmp_path: Path) -> None:
    assert plan(config, tmp_path / "run", host=default_host()).stages
