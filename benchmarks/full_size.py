"""A full-size U-Net on two cores: Stable Diffusion 2.1's, of random weights, gated, counted, sliced and searched.

    python benchmarks/full_size.py --size 96 --batch 1 --threads 2

Prints the wall time of each part and the most memory that the process has held so far. Everything beside the U-Net
(autoencoder, text encoder) is tiny: they run once a picture, before the search.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from published_models import MODELS, TARGET, uniform
from torch import nn
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel

import aptp
from aptp.config import load_config
from aptp.core.progress import Quiet
from aptp.core.record import Record
from aptp.harness.search import search
from aptp.harness.selection import choose
from aptp.harness.workspace import Workspace, make
from aptp.host import default_host
from aptp.report.wording import plural
from aptp.testing import tiny_inputs


@contextmanager
def measured(what: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(f"| {what} | {time.monotonic() - start:.1f} | {peak:.1f} |", flush=True)


def pipeline_around(unet: nn.Module) -> StableDiffusionPipeline:
    """Everything else tiny, in the shapes that the U-Net asks for."""
    tokenizer = AutoTokenizer.from_pretrained(str(files("aptp") / "assets" / "tiny" / "tokenizer"))
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=unet.config.cross_attention_dim,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4,) * 4,
        norm_num_groups=2,
        layers_per_block=1,
        mid_block_add_attention=False,
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text).eval().requires_grad_(False),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(prediction_type="v_prediction", clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def workspace(unet: nn.Module, folder: Path, batch: int, steps: int) -> Workspace:
    """That of a run on a few pictures, prepared for its search."""
    flags = {
        "data": {"name": "scenes", "train": 2 * batch + 2, "validation": 2},
        "budget": TARGET,
        "experts": 2,
        "prepare.cache": str(folder / "cache"),
        "search": {"steps": steps, "batch": batch, "start": "magnitude"},
    }
    config, host = load_config(flags=flags).resolved(default_host()), default_host()
    record = Record(started="", config={}, versions={}, hardware={})
    dataset = make(host, "dataset", config.data)
    chosen = choose(dataset, config.prepare, config.seed)
    device = torch.device("cpu")
    work = Workspace(config, folder, host, Quiet(), record, device, pipeline_around(unet), dataset, chosen)
    work.train = work.preparer.pictures(chosen.train, dataset.fingerprint(), "training")
    return work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=96, help="height and width of the latents")
    parser.add_argument("--batch", type=int, default=1, help="pictures in a search step")
    parser.add_argument("--steps", type=int, default=3, help="search steps")
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    published = MODELS["SD 2.1"]
    print(f"| {asked.size} × {asked.size} latents, batch {asked.batch} | seconds | peak, GB |\n| --- | --- | --- |")
    with measured("random weights"):
        torch.manual_seed(0)
        unet = published.build("cpu")
        unet.register_to_config(sample_size=asked.size)
    with measured("search space and cost model"):
        space = aptp.search_space(unet)
        costs = aptp.cost_model(unet, space, text_tokens=published.tokens)
        architecture = uniform(unet, space, costs)
    inputs = tiny_inputs(unet, 1, sample_size=asked.size, text_tokens=published.tokens)
    with measured("a gated call, forward"), torch.no_grad(), aptp.gated(unet, space, architecture.gates):
        masked = unet(**inputs).sample
    with measured(f"slicing to {float(costs.fraction(architecture.gates)):.3f}"):
        small = aptp.slice(unet, space, architecture)
    with measured("a call of the slice"), torch.no_grad():
        sliced = small(**inputs).sample
    error = ((masked - sliced).norm() / sliced.norm()).item()
    del small
    with tempfile.TemporaryDirectory() as folder:
        with measured("preparing a few pictures"):
            work = workspace(unet, Path(folder), asked.batch, asked.steps)
        with measured(f"{plural(asked.steps, 'search step')}, with start and calibration"):
            found = search(work)
    print(f"\nmasked against sliced: {error:.1e}; cost of the experts, calibrated: {found.expected:.3f}")


if __name__ == "__main__":
    main()
