from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from aptp.core.metric import GenerationBatch

TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}


def save_clip(folder: Path, seed: int = 0) -> Path:
    """A small random CLIP in the layout of real ones, for pictures of 16 pixels."""
    torch.manual_seed(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    text = TOWER | {
        "vocab_size": 54,
        "max_position_embeddings": 16,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    vision = TOWER | {"image_size": 16, "patch_size": 4}
    size = {"height": 16, "width": 16}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).half().save_pretrained(folder)
    CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=16).save_pretrained(
        folder
    )
    CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=size).save_pretrained(folder)
    return folder


def random_batch(count: int, seed: int = 0, size: int = 24) -> GenerationBatch:
    """Noise of different brightness on either side."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 128, (count, 3, size, size), generator=generator)
    references = torch.randint(0, 256, (count, 3, size, size), generator=generator)
    prompts = [f"picture {chr(97 + i % 26)}" for i in range(count)]
    return GenerationBatch(images.byte(), prompts, references.byte(), torch.zeros(count, dtype=torch.int64))


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clips") / "small-clip")


@pytest.fixture
def batches() -> list[GenerationBatch]:
    return [random_batch(20, seed=1), random_batch(13, seed=2)]
