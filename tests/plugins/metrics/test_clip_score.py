from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torchmetrics.multimodal.clip_score import CLIPScore
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizer

from aptp.core.errors import RequestError
from aptp.core.metric import GenerationBatch
from aptp.plugins.metrics._features import load_features
from aptp.plugins.metrics.clip_score import ClipScore


class Unwrapped(CLIPModel):
    """A CLIP whose getters give tensors, as torchmetrics expects."""

    def get_image_features(self, *args: torch.Tensor) -> torch.Tensor:
        return super().get_image_features(*args).pooler_output

    def get_text_features(self, *args: torch.Tensor) -> torch.Tensor:
        return super().get_text_features(*args).pooler_output


def scores(folder: Path, batches: list[GenerationBatch]) -> dict[str, float]:
    metric = ClipScore(ClipScore.Options(features=str(folder)))
    for batch in batches:
        metric.update(batch)
    return metric.compute()


def test_equals_numpys_cosine(clip_folder: Path, batches: list[GenerationBatch]):
    figures, features = scores(clip_folder, batches), load_features(str(clip_folder))

    def cosine(side: str) -> float:
        images = np.concatenate([features.images(getattr(b, side)).numpy() for b in batches]).astype(float)
        texts = np.concatenate([features.texts(b.prompts).numpy() for b in batches]).astype(float)
        norms = np.linalg.norm(images, axis=1) * np.linalg.norm(texts, axis=1)
        return float(100 * np.mean((images * texts).sum(1) / norms))

    assert figures == pytest.approx(
        {"clip_score_small-clip": cosine("images"), "clip_score_small-clip_real": cosine("references")}, abs=1e-4
    )
    assert figures["clip_score_small-clip"] != figures["clip_score_small-clip_real"]


def test_equals_torchmetrics_own(clip_folder: Path, batches: list[GenerationBatch]):
    processor = CLIPProcessor(
        CLIPImageProcessorPil.from_pretrained(clip_folder), CLIPTokenizer.from_pretrained(clip_folder)
    )
    model = Unwrapped.from_pretrained(clip_folder, dtype=torch.float32).eval()
    pairs = [(i, p) for b in batches for i, p in zip(b.images, b.prompts, strict=True)]
    # torchmetrics shows the mean only from zero upwards: its sum is compared
    theirs = CLIPScore(lambda: (model, processor))
    theirs.update([image for image, _ in pairs], [prompt for _, prompt in pairs])
    expected = float(theirs.score / theirs.n_samples)
    assert scores(clip_folder, batches)["clip_score_small-clip"] == pytest.approx(expected, abs=1e-3)


def test_no_pictures(clip_folder: Path):
    with pytest.raises(RequestError, match="was given 0 pictures"):
        scores(clip_folder, [])
