"""The example of a denoiser family: what it gates, and a whole run on a small random checkpoint of it."""

from __future__ import annotations

import importlib
from pathlib import Path

import diffusers
import pytest
import torch
from transformers import AutoTokenizer, UMT5Config, UMT5EncoderModel

import aptp
from aptp.config import load_config
from aptp.core.progress import Quiet
from aptp.harness import run
from aptp.host import Host
from aptp.testing import check_denoiser

PACKAGE = Path(__file__).resolve().parents[2] / "examples/aptp-auraflow"


@pytest.fixture(scope="module")
def host() -> Host:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(PACKAGE)
        return Host([importlib.import_module("aptp_auraflow")], entry_points=False)


def small_model(**config: object) -> diffusers.AuraFlowTransformer2DModel:
    torch.manual_seed(0)
    sizes = {"sample_size": 8, "attention_head_dim": 4, "num_attention_heads": 4, "caption_projection_dim": 16}
    layers = {"num_mmdit_layers": 2, "num_single_dit_layers": 2, "joint_attention_dim": 12, "pos_embed_max_size": 16}
    return diffusers.AuraFlowTransformer2DModel(**{**sizes, **layers, **config}).eval().requires_grad_(False)


@pytest.mark.parametrize("layers", [(2, 2), (1, 0), (0, 2)])
def test_conforms(host: Host, layers: tuple[int, int]) -> None:
    denoiser = host.target("denoiser", "auraflow")()
    check_denoiser(denoiser, small_model(num_mmdit_layers=layers[0], num_single_dit_layers=layers[1]))


def test_every_attention_feed_forward_and_block_is_a_part(host: Host) -> None:
    model = small_model()
    sites = aptp.search_space(model, blocks="all", host=host).sites
    for name, kinds in {"Attention": "heads", "FeedForward": "units", "Block": "block"}.items():
        there = {path for path, module in model.named_modules() if type(module).__name__.endswith(name)}
        assert {site.path for site in sites if site.kind.endswith(kinds)} == there - {"norm_out"}


def test_widths_can_be_aligned(host: Host) -> None:
    space = aptp.search_space(small_model(), "width", align=8, host=host)
    assert space.strides == tuple(8 * site.units // site.channels or 1 for site in space.sites)


@pytest.fixture(scope="module")
def checkpoint(small_tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(small_tokenizer.name_or_path)
    text = UMT5Config(vocab_size=len(tokenizer), d_model=12, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 4),
        norm_num_groups=2,
        layers_per_block=1,
        mid_block_add_attention=False,
    )
    transformer = small_model()
    pipeline = diffusers.AuraFlowPipeline(
        tokenizer=tokenizer,
        text_encoder=UMT5EncoderModel(text),
        vae=vae,
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=1.73),
    )
    folder = tmp_path_factory.mktemp("checkpoint") / "auraflow"
    pipeline.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_a_whole_run(host: Host, checkpoint: Path, tmp_path: Path) -> None:
    flags = {
        "model": str(checkpoint),
        "data": {"name": "scenes", "train": 20, "validation": 10},
        "budget": 0.7,
        "experts": 2,
        "prepare.cache": str(tmp_path / "cache"),
        "adapt": {"steps": 1, "batch": 2},
        "search": {"steps": 4, "batch": 4},
        "recover": {"steps": 4, "batch": 4},
        "metrics": ["cmmd"],
        "evaluate": {"prompts": 4, "steps": 2, "batch": 4, "gallery": 1},
    }
    record = run(load_config(flags=flags).resolved(host), tmp_path / "run", host=host, progress=Quiet())
    assert record.status == "done"
    assert record.budget.expected == pytest.approx(0.7, abs=0.02)
    expert = aptp.load_expert(tmp_path / "run/experts/00")
    assert type(expert) is diffusers.AuraFlowTransformer2DModel
    drawn = aptp.load(tmp_path / "run", device="cpu", host=host)(["a red star"], num_inference_steps=2)
    assert drawn.images[0].size == (16, 16)
