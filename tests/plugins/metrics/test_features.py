from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTextModel, CLIPTokenizer

from aptp.core.errors import RequestError
from aptp.core.metric import GenerationBatch
from aptp.plugins.metrics._features import EMBEDDED, Features, load_features


def test_embeddings_equal_the_models_own(clip_folder: Path, batches: list[GenerationBatch]):
    features, batch = load_features(str(clip_folder)), batches[0]
    model = CLIPModel.from_pretrained(clip_folder, dtype=torch.float32).eval()
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in batch.images]
    pixels = CLIPImageProcessorPil.from_pretrained(clip_folder)(pictures, return_tensors="pt")["pixel_values"]
    prompts = [*batch.prompts, "", "long " * 50]
    tokens = CLIPTokenizer.from_pretrained(clip_folder)(
        prompts, padding=True, truncation=True, max_length=16, return_tensors="pt"
    )
    with torch.no_grad():
        outputs = model(pixel_values=pixels, **tokens)
    torch.testing.assert_close(features.images(batch.images), outputs.image_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(features.texts(prompts), outputs.text_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(features.images(batch.images).norm(dim=-1), torch.ones(20))
    assert features.label == "small-clip"


def test_a_batch_is_embedded_once(clip_folder: Path, batches: list[GenerationBatch], monkeypatch: pytest.MonkeyPatch):
    features, calls = load_features(str(clip_folder)), []
    assert load_features(str(clip_folder)) is features
    images = features.images
    monkeypatch.setattr(features, "images", lambda pictures: calls.append(len(pictures)) or images(pictures))
    for batch in batches:
        for _ in range(3):
            embedded = features.embed(batch)
            assert embedded.images.shape == embedded.references.shape == embedded.prompts.shape
    assert calls == [20, 20, 13, 13]


@pytest.mark.parametrize(
    "pictures", [torch.rand(2, 3, 8, 8), torch.zeros(3, 8, 8).byte(), torch.zeros(2, 1, 8, 8).byte()]
)
def test_pictures_are_8_bit_rgb(clip_folder: Path, pictures: torch.Tensor):
    with pytest.raises(ValueError, match=r"give uint8 \[batch, 3, height, width\]"):
        load_features(str(clip_folder)).images(pictures)


def test_folders_without_such_a_model(clip_folder: Path, tmp_path: Path):
    with pytest.raises(RequestError, match="features '/no/such' does not exist"):
        load_features("/no/such")
    with pytest.raises(RequestError, match=f"cannot be loaded .*or '{EMBEDDED}'"):
        load_features(str(tmp_path))
    CLIPTextModel(CLIPModel.from_pretrained(clip_folder).config.text_config).save_pretrained(tmp_path)
    with pytest.raises(RequestError, match=r"lack weights for|cannot be loaded"):
        load_features(str(tmp_path))
    CLIPModel.from_pretrained(clip_folder).save_pretrained(tmp_path)
    with pytest.raises(RequestError, match="cannot be loaded"):
        load_features(str(tmp_path))


def test_the_embedded_evaluator():
    features = Features(EMBEDDED)
    assert features.label == "evaluator"
    assert features.model.config.projection_dim <= 64
    assert features.images(torch.zeros(2, 3, 64, 64).byte()).shape == features.texts(["a red star", ""]).shape
