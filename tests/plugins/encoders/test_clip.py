from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import CLIPConfig, CLIPModel, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from aptp.core.errors import RequestError
from aptp.plugins.encoders.clip import ClipTextEncoder

TEXTS = ["a red star", "", "b c d e", "star " * 50]
TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}


def tokenizer() -> CLIPTokenizer:
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=16)


def config() -> CLIPConfig:
    text = TOWER | {
        "vocab_size": 54,
        "max_position_embeddings": 16,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    # the width of the text config alone differs from the model's, as in folders that leave it at its default
    return CLIPConfig(text_config=text, vision_config=TOWER | {"image_size": 8, "patch_size": 4}, projection_dim=12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("clip")
    CLIPModel(config()).half().save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path


def encoder(folder: Path, max_tokens: int = 64) -> ClipTextEncoder:
    return ClipTextEncoder(ClipTextEncoder.Options(model=str(folder), max_tokens=max_tokens))


def test_equals_the_whole_model(folder: Path):
    ours = encoder(folder)
    whole = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = tokenizer()(TEXTS, padding=True, truncation=True, max_length=16, return_tensors="pt")
    theirs = whole.get_text_features(**tokens).pooler_output
    embeds = ours.encode(TEXTS)
    assert ours.tokens == 16
    assert (embeds.shape, embeds.dtype, embeds.device.type) == ((4, 12), torch.float32, "cpu")
    torch.testing.assert_close(embeds, theirs / theirs.norm(dim=-1, keepdim=True), atol=1e-5, rtol=0)


def test_an_embedding_does_not_depend_on_its_batch(folder: Path):
    ours = encoder(folder)
    batch = TEXTS + [f"{chr(97 + i % 26)} picture" for i in range(80)]
    together = ours.encode(batch)
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(84))
    for i in (0, 1, 3, 83):
        torch.testing.assert_close(ours.encode([batch[i]])[0], together[i], atol=1e-6, rtol=0)
    assert ours.encode([]).shape == (0, 12)


def test_the_fingerprint_tells_weights_and_length_apart(folder: Path, tmp_path: Path):
    torch.manual_seed(1)
    CLIPModel(config()).half().save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    prints = {encoder(folder).fingerprint(), encoder(folder, 8).fingerprint(), encoder(tmp_path).fingerprint()}
    assert len(prints) == 3
    assert encoder(folder, 16).fingerprint() in prints


def test_a_text_tower_alone(tmp_path: Path):
    text = config().text_config
    text.projection_dim = 12
    CLIPTextModelWithProjection(text).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    assert encoder(tmp_path).encode(["a"]).shape == (1, 12)


def test_a_tower_without_projection_is_refused(tmp_path: Path):
    CLIPTextModel(config().text_config).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    with pytest.raises(RequestError, match="no weights for text_projection"):
        encoder(tmp_path)


def test_folders_without_such_a_model(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    with pytest.raises(RequestError, match="cannot be loaded") as empty:
        encoder(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(RequestError, match="its model type is 'bert'") as other:
        encoder(tmp_path)
    CLIPModel(config()).save_pretrained(tmp_path)
    capfd.readouterr()
    with pytest.raises(RequestError, match="cannot be loaded") as wordless:
        encoder(tmp_path)
    assert all("\n" not in str(error.value) and str(tmp_path) in str(error.value) for error in (empty, other, wordless))
    assert capfd.readouterr() == ("", "")


ELSEWHERE = [("../model.safetensors", "in another folder"), ("w.txt", "no safetensors")]


@pytest.mark.parametrize(("weights", "why"), ELSEWHERE)
def test_weights_elsewhere_or_to_be_unpickled_are_refused(folder: Path, tmp_path: Path, weights: str, why: str):
    moved = shutil.copytree(folder, tmp_path / "clip")
    (moved / "model.safetensors").rename(moved / weights)
    listed = {"metadata": {}, "weight_map": {"text_projection.weight": weights}}
    (moved / "model.safetensors.index.json").write_text(json.dumps(listed))
    with pytest.raises(RequestError, match=rf"names weights '{weights}'.* {why}"):
        encoder(moved)


def test_code_of_a_model_is_not_run_and_not_asked_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to run code"))
    own = {"model_type": "stowaway", "auto_map": {"AutoConfig": "stowaway.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(own))
    (tmp_path / "stowaway.py").write_text("raise SystemExit")
    with pytest.raises(RequestError, match="cannot be loaded"):
        ClipTextEncoder(ClipTextEncoder.Options(model=str(tmp_path)))
