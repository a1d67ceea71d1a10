"""Quiet, offline, single-threaded and repeatable."""

from __future__ import annotations

import json
import os
import shutil

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["DIFFUSERS_VERBOSITY"] = "error"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from filelock import FileLock
from hypothesis import HealthCheck, settings
from PIL import Image

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

    from aptp.config import RunConfig
    from aptp.core.record import Record

settings.register_profile(
    "aptp", max_examples=6, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(
    "thorough", settings.get_profile("aptp"), max_examples=200, derandomize=False
)  # pytest --hypothesis-profile=thorough
settings.load_profile("aptp")


torch.set_num_threads(1)  # for fixtures of a module too, which come before those of a test


@pytest.fixture(autouse=True)
def _repeatable():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def small_tokenizer() -> CLIPTokenizer:
    """The embedded model's."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(files("aptp") / "assets" / "tiny" / "tokenizer"))


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a folder that is read by all tests, once for all of pytest-xdist's processes."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root

    def folder(name: str, make: Callable[[Path], object]) -> Path:
        made, done = root / "shared" / name, root / "shared" / f"{name}.done"
        made.parent.mkdir(exist_ok=True)
        with FileLock(f"{made}.lock"):
            if not done.exists():
                shutil.rmtree(made, ignore_errors=True)
                make(made)
                done.touch()
        return made

    return folder


@pytest.fixture(scope="session")
def sd_folder(small_tokenizer: CLIPTokenizer, shared_folder: Callable[..., Path]) -> Path:
    """A whole Stable Diffusion pipeline of random weights: 8 × 8 latents, 16 × 16 pictures."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
    from transformers import CLIPTextConfig, CLIPTextModel

    from aptp.testing import tiny_unet

    torch.manual_seed(0)
    text = CLIPTextConfig(
        vocab_size=len(small_tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=small_tokenizer.model_max_length,
        bos_token_id=small_tokenizer.bos_token_id,
        eos_token_id=small_tokenizer.eos_token_id,
        pad_token_id=small_tokenizer.pad_token_id,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        mid_block_add_attention=False,
        sample_size=16,
    )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=small_tokenizer,
        unet=tiny_unet("sd2", cross_attention_dim=16),
        scheduler=DDIMScheduler(clip_sample=False, prediction_type="v_prediction", beta_schedule="scaled_linear"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return shared_folder("sd", pipeline.save_pretrained)


@pytest.fixture(scope="session")
def sd3_folder(small_tokenizer: CLIPTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole Stable Diffusion 3 pipeline of random weights, without its third text encoder: 8 × 8 latents."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    from aptp.testing import tiny_sd3

    torch.manual_seed(0)
    texts = [
        CLIPTextConfig(
            vocab_size=len(small_tokenizer),
            hidden_size=width,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=small_tokenizer.model_max_length,
            bos_token_id=small_tokenizer.bos_token_id,
            eos_token_id=small_tokenizer.eos_token_id,
            pad_token_id=small_tokenizer.pad_token_id,
            projection_dim=width,
        )
        for width in (8, 16)
    ]
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=16,
        norm_num_groups=4,
        mid_block_add_attention=False,
        sample_size=16,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    pipeline = StableDiffusion3Pipeline(
        transformer=tiny_sd3("sd3", in_channels=16, out_channels=16, joint_attention_dim=32, pooled_projection_dim=24),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=CLIPTextModelWithProjection(texts[0]),
        tokenizer=small_tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(texts[1]),
        tokenizer_2=small_tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    folder = tmp_path_factory.mktemp("model") / "sd3"
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def write_coco() -> Callable[..., Path]:
    """Writes a COCO folder of noise: pictures numbered from 1, each with so many captions, and its validation part."""

    def write(root: Path, year: int = 2014, train: int = 6, validation: int = 5, captions: int = 3) -> Path:
        noise = np.random.default_rng(0)
        (root / "annotations").mkdir(parents=True, exist_ok=True)
        for part, count in (("train", train), ("val", validation)):
            (root / f"{part}{year}").mkdir()
            images, annotations = [], []
            for number in range(1, count + 1):
                name = f"COCO_{part}{year}_{number:012d}.jpg"
                pixels = noise.integers(0, 256, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / f"{part}{year}" / name)
                images.append({"id": number, "file_name": name})
                annotations += [
                    {"image_id": number, "id": 10 * number + k, "caption": f"{part} picture {number}, said {k}.\n"}
                    for k in range(captions)
                ]
            file = root / "annotations" / f"captions_{part}{year}.json"
            file.write_text(json.dumps({"images": images, "annotations": annotations}))
        return root

    return write


@pytest.fixture(scope="session")
def emoji_font() -> Path:
    """Noto's colour emoji, where it is installed."""
    from matplotlib.font_manager import findSystemFonts

    found = [path for path in findSystemFonts() if path.endswith("NotoColorEmoji.ttf")]
    if not found:
        pytest.skip("the font NotoColorEmoji.ttf is not installed (fonts-noto-color-emoji)")
    return Path(found[0])


@dataclass(frozen=True)
class Finished:
    """A finished run: its folder, its resolved configuration and its record."""

    out: Path
    config: RunConfig
    record: Record


@pytest.fixture(scope="session")
def small_config(sd_folder: Path, shared_folder: Callable[..., Path]) -> RunConfig:
    """A run of seconds: 3 experts of the random pipeline, the real data, encoder and metrics."""
    from aptp.config import load_config
    from aptp.host import default_host

    flags = {
        "model": str(sd_folder),
        "data": {"name": "scenes", "train": 60, "validation": 20},
        "encoder": {"name": "minilm", "max_tokens": 24},
        "budget": 0.7,
        "experts": 3,
        "prepare.cache": str(shared_folder("cache", Path.mkdir)),
        "search": {"steps": 20, "batch": 8},
        "recover": {"steps": 12, "batch": 8},
        "evaluate": {"prompts": 12, "steps": 2, "batch": 6, "gallery": 1},
        "compare": ["magnitude"],
    }
    return load_config(flags=flags).resolved(default_host())


@pytest.fixture(scope="session")
def finished(small_config: RunConfig, shared_folder: Callable[..., Path]) -> Finished:
    """That run, done; read it, change nothing in it."""
    from aptp.core.progress import Quiet
    from aptp.core.record import Record
    from aptp.harness import run
    from aptp.host import default_host

    out = shared_folder("run", lambda out: run(small_config, out, host=default_host(), progress=Quiet()))
    return Finished(out, small_config, Record.load(out / "record.json"))


class RayCluster:
    """A Ray cluster on this machine: a head that runs no tasks, and nodes of one core, which tests add and kill."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.small = {"object_store_memory": 80 * 2**20}
        self.cluster = Cluster(True, head_node_args={"num_cpus": 0, "include_dashboard": False, **self.small})

    def two_nodes(self) -> None:
        """Bring the nodes to two."""
        while len(self.cluster.worker_nodes) < 2:
            self.cluster.add_node(num_cpus=1, **self.small)
        self.cluster.wait_for_nodes()

    def kill(self, node_id: str) -> None:
        """Lose a node without a warning."""
        (node,) = (node for node in self.cluster.worker_nodes if node.node_id == node_id)
        self.cluster.remove_node(node, allow_graceful=False)


@pytest.fixture(scope="session")
def _ray_cluster() -> Iterator[RayCluster]:
    pytest.importorskip("ray")
    quiet = {"USAGE_STATS_ENABLED": "0", "memory_monitor_refresh_ms": "0", "worker_niceness": "0"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in quiet.items():
            patch.setenv(f"RAY_{name}", value)
        running = RayCluster()
        patch.setenv("RAY_ADDRESS", running.cluster.address)
        yield running
        running.cluster.shutdown()


@pytest.fixture
def ray_cluster(_ray_cluster: RayCluster) -> RayCluster:
    """A cluster of two nodes, at `RAY_ADDRESS`."""
    _ray_cluster.two_nodes()
    return _ray_cluster
