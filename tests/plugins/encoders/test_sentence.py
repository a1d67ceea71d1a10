from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from aptp.core.errors import RequestError
from aptp.plugins.encoders.minilm import MiniLM, package_folder
from aptp.plugins.encoders.sentence import SentenceEncoder


def options(model: object, **settings: object):
    return SentenceEncoder.Options(model=str(model), **settings)


def test_a_local_folder_is_the_same_model_wherever_it_lies(tmp_path: Path):
    folder = tmp_path / "copy"
    shutil.copytree(package_folder(), folder)
    ours, packaged = SentenceEncoder(options(folder, max_tokens=16)), MiniLM(MiniLM.Options(max_tokens=16))
    texts = ["a red star", "", "the word STOP"]
    assert torch.equal(ours.encode(texts), packaged.encode(texts))
    before = ours.fingerprint()
    assert before == packaged.fingerprint()
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert ours.fingerprint() != before


@pytest.mark.parametrize("name", ["/no/such/folder", "./nowhere", "a/b/c", "two words"])
def test_no_such_folder(name: str):
    with pytest.raises(RequestError, match=f"encoder '{name}' does not exist; give a local folder or a hub name"):
        SentenceEncoder(options(name))


def test_a_hub_name_without_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        RequestError, match="encoder 'nobody/no-such-model' is neither a local folder nor to be had"
    ) as caught:
        SentenceEncoder(options("nobody/no-such-model"))
    assert "\n" not in str(caught.value)


def test_a_folder_of_another_kind(tmp_path: Path):
    with pytest.raises(RequestError, match=r"no sentence-transformers model: give .* modules\.json"):
        SentenceEncoder(options(tmp_path))


def test_a_damaged_folder(tmp_path: Path):
    (tmp_path / "modules.json").write_text('[{"idx": 0, "name": "0", "path": "", "type": "os.system"}]')
    with pytest.raises(RequestError, match=r"cannot be loaded \(.*\); give") as caught:
        SentenceEncoder(options(tmp_path))
    assert "\n" not in str(caught.value)


def test_pickled_weights_are_refused(tmp_path: Path):
    shutil.copytree(package_folder(), tmp_path / "copy")
    (tmp_path / "copy" / "model.safetensors").rename(tmp_path / "copy" / "pytorch_model.bin")
    with pytest.raises(RequestError, match="pickled weights"):
        SentenceEncoder(options(tmp_path / "copy"))
