"""What the cache saves: a search step that reads encoded rows beside one that encodes them, and how long reading takes.

The pipeline is Stable Diffusion 2.1's with a quarter or half of its channels in U-Net, autoencoder and text encoder
alike, of random weights, at 256 × 256 pixels; pictures are JPEG files of COCO's size. A step is the search's own:
batch, router, gated student and dense teacher, backward pass. Times are CPU seconds of one thread, so that other work
on the machine hardly counts, and medians of rounds that alternate.
`pytest benchmarks/test_cache.py --benchmark-only -s`
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel

from aptp.config import load_config
from aptp.core.cache import Encoded, Table, key_of
from aptp.core.encoder import PromptEncoder
from aptp.core.progress import Quiet
from aptp.core.record import Record
from aptp.core.router import PromptBatch
from aptp.harness.data import Pictures
from aptp.harness.search import search
from aptp.harness.selection import choose
from aptp.harness.workspace import Workspace, make
from aptp.host import default_host
from aptp.models import load_pipeline

BATCH, ROUNDS = 2, 5
READING = 0.05
"""Of a search step, reading is to take so much at most."""
STATES = (77, 1024)
"""Text states of Stable Diffusion 2.1."""
CAPTIONS = 512


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def narrow_sd21(part: int) -> StableDiffusionPipeline:
    """One `part`-th of the channels and of the text encoder's heads; 32 × 32 latents, the embedded tokenizer."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(
        str(files("aptp") / "assets" / "tiny" / "tokenizer"), model_max_length=STATES[0]
    )
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=1024 // part,
        intermediate_size=4096 // part,
        num_hidden_layers=23,
        num_attention_heads=16 // part,
        max_position_embeddings=STATES[0],
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=tuple(width // part for width in (128, 256, 512, 512)),
        norm_num_groups=32 // part,
        layers_per_block=2,
        sample_size=256,
    )
    unet = UNet2DConditionModel(
        sample_size=32,
        block_out_channels=tuple(width // part for width in (320, 640, 1280, 1280)),
        norm_num_groups=32 // part,
        attention_head_dim=(5, 10, 20, 20),
        cross_attention_dim=1024 // part,
        use_linear_projection=True,
    )
    for module in (vae, unet):
        module.eval().requires_grad_(False)
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


def photographs(folder: Path, count: int) -> str:
    """JPEG files of 640 × 480 with captions; smooth noise, which compresses as photographs do."""
    noise, rows = np.random.default_rng(0), []
    for number in range(count):
        small = Image.fromarray(noise.integers(0, 256, (60, 80, 3), dtype=np.uint8))
        small.resize((640, 480), Image.Resampling.BICUBIC).save(folder / f"{number:02d}.jpg")
        rows.append({"file_name": f"{number:02d}.jpg", "text": f"picture {number} of a street with people and cars"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def workspace(
    pipeline: StableDiffusionPipeline,
    folder: Path,
    data: dict[str, Any],
    batch: int,
    device: str = "cpu",
    precision: str = "fp32",
) -> Workspace:
    """That of a run, prepared for its search."""
    flags = {
        "precision": precision,
        "data": data,
        "experts": 2,
        "prepare.cache": str(folder / "cache"),
        "search": {"steps": 2, "batch": batch, "start": None},
        "router.warmup": 0.5,
    }
    config, host = load_config(flags=flags).resolved(default_host()), default_host()
    record = Record(started="", config={}, versions={}, hardware={})
    dataset = make(host, "dataset", config.data)
    chosen = choose(dataset, config.prepare, config.seed)
    work = Workspace(config, folder / "run", host, Quiet(), record, torch.device(device), pipeline, dataset, chosen)
    work.train = work.preparer.pictures(chosen.train, dataset.fingerprint(), "training")
    return work


def step_of(work: Workspace) -> Callable[[int], Any]:
    """A step of the work's search, without the optimizer's share; the search is not carried out."""
    steps: list[Callable[[int], Any]] = []
    work.fit = lambda *stage: steps.append(stage[-1])
    search(work)
    return steps[0]


@dataclass(frozen=True)
class Uncached(Pictures):
    """Encodes what it is asked for."""

    encoder: PromptEncoder

    def latents_of(self, index: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return self._encoded(self.latents.rows, self.latents.row_of[index])["latents"]

    def text_states(self, index: Tensor) -> dict[str, Tensor]:
        return self._encoded(self.text, self.caption_of[index])

    def prompts(self, index: Tensor | None = None) -> PromptBatch:
        batch = super().prompts(index)
        return batch if index is None else replace(batch, embeds=self.encoder.encode(batch.text))

    @torch.no_grad()
    def _encoded(self, table: Table, places: Tensor) -> dict[str, Tensor]:
        return {name: rows.cpu() for name, rows in table.encode(places.tolist()).rows.items()}  # as a table gives them


def seconds_of(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def read(pictures: Pictures, index: Tensor) -> None:
    """All that a step asks for."""
    pictures.latents_of(index)
    pictures.text_states(index)
    pictures.prompts(index)


@pytest.mark.parametrize("part", [4, 2])
def test_a_search_step_with_and_without_the_cache(benchmark, tmp_path, part):
    (tmp_path / "pictures").mkdir()
    data = {"name": "imagefolder", "path": photographs(tmp_path / "pictures", 24), "validation": 0.2}
    work = workspace(narrow_sd21(part), tmp_path, data, BATCH)
    step, cached = step_of(work), work.train
    uncached = Uncached(**vars(cached), encoder=work.encoder)
    times: dict[str, list[float]] = {"cached": [], "uncached": [], "reading": []}

    def both() -> None:
        number = len(times["cached"])
        for name, pictures in (("cached", cached), ("uncached", uncached)):
            work.train = pictures
            times[name].append(seconds_of(lambda: step(number)))
        index = torch.randint(0, len(cached), (BATCH,))
        times["reading"].append(seconds_of(lambda: read(cached, index)))

    benchmark.pedantic(both, rounds=ROUNDS, warmup_rounds=1)
    pairs = list(zip(times["cached"], times["uncached"], strict=True))[1:]
    ratios = [without / with_ for with_, without in pairs]
    seconds, reading = median(with_ for with_, _ in pairs), median(times["reading"][1:])
    benchmark.extra_info.update(ratio=median(ratios), ratios=ratios, seconds=seconds, reading=reading)
    print(f"\n1/{part} of the channels: a step {seconds:.2f} s, reading {1e3 * reading:.2f} ms, aim {READING} of it")
    print(f"without the cache ×{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def test_reading_keeps_up_with_the_embedded_model(benchmark, tmp_path):
    batch = 32
    pipeline = load_pipeline("tiny", torch.device("cpu"))
    work = workspace(pipeline, tmp_path, {"name": "scenes", "train": CAPTIONS, "validation": 16}, batch)
    step = step_of(work)
    times: dict[str, list[float]] = {"step": [], "reading": []}

    def both() -> None:
        times["step"].append(seconds_of(lambda: step(len(times["step"]))))
        index = torch.randint(0, len(work.train), (batch,))
        times["reading"].append(seconds_of(lambda: read(work.train, index)))

    benchmark.pedantic(both, rounds=3 * ROUNDS, warmup_rounds=1)
    seconds, reading = (median(mine[1:]) for mine in times.values())
    benchmark.extra_info.update(seconds=seconds, reading=reading)
    print(f"\na step of {batch}: {seconds:.2f} s, reading {1e3 * reading:.2f} ms")
    print(f"{reading / seconds:.4f} of it, aim {READING} at most")


@pytest.mark.parametrize("batch", [1, 64])
def test_rows_at_random(benchmark, tmp_path, batch):
    def encode(places: list[int]) -> Encoded:
        return Encoded({"encoder_hidden_states": torch.rand(len(places), *STATES)}, {})

    table = Table(tmp_path, [key_of(i) for i in range(CAPTIONS)], encode, 64, "encoding", Quiet())
    table.fill()
    generator = torch.Generator().manual_seed(0)
    times: list[float] = []

    def once() -> None:
        index = torch.randint(0, CAPTIONS, (batch,), generator=generator)
        times.append(seconds_of(lambda: table[index]))

    benchmark.pedantic(once, rounds=40, warmup_rounds=1)
    seconds = median(times[1:]) / batch
    rate = 4 * STATES[0] * STATES[1] / seconds / 1e6
    opening = seconds_of(lambda: Table(tmp_path, table.keys, encode, 64, "encoding", Quiet()))
    benchmark.extra_info.update(seconds=seconds, rate=rate, opening=opening)
    print(f"\n{batch} rows at once: {1e3 * seconds:.2f} ms each, {rate:.0f} MB/s; opening {1e3 * opening:.0f} ms")
