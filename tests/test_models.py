"""Loading dense pipelines: every wrong request is one sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from aptp.core.errors import RequestError
from aptp.harness import plan
from aptp.host import default_host
from aptp.models import device_of, find_model, fingerprint, load_pipeline, pipeline_fingerprint

CPU = torch.device("cpu")


@pytest.fixture
def model(sd_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sd_folder, tmp_path / "model"))


def without(component: str | None, folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    index[component] = [None, None]
    (folder / "model_index.json").write_text(json.dumps(index))


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def test_loads_frozen_in_float32(sd_folder: Path) -> None:
    pipeline = load_pipeline(str(sd_folder), CPU)
    for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        assert not module.training
        assert all(not p.requires_grad and p.dtype == torch.float32 for p in module.parameters())


@pytest.mark.parametrize("name", ["tinny", "/nowhere/at/all", "./nowhere", "three/part/name"])
def test_an_unknown_model_is_refused(name: str) -> None:
    with pytest.raises(RequestError, match=r"unknown model '.*'; give 'tiny', a local"):
        find_model(name)


def test_a_folder_that_is_no_pipeline_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"is no diffusers pipeline: it has no model_index\.json"):
        load_pipeline(str(tmp_path), CPU)


def test_a_hub_name_without_network_is_refused() -> None:
    with pytest.raises(RequestError, match="'someone/no-such-model' is neither in the hub's cache") as caught:
        load_pipeline("someone/no-such-model", CPU)
    assert "\n" not in str(caught.value)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "no JSON": lambda folder: (folder / "model_index.json").write_text("{"),
    "unknown pipeline": lambda folder: (folder / "model_index.json").write_text('{"_class_name": "NoPipeline"}'),
    "no unet folder": lambda folder: shutil.rmtree(folder / "unet"),
    "no unet weights": lambda folder: (folder / "unet/diffusion_pytorch_model.safetensors").unlink(),
    "truncated unet": lambda folder: truncated(folder / "unet/diffusion_pytorch_model.safetensors"),
    "truncated vae": lambda folder: truncated(folder / "vae/diffusion_pytorch_model.safetensors"),
    "truncated text encoder": lambda folder: truncated(folder / "text_encoder/model.safetensors"),
    "damaged tokenizer": lambda folder: (folder / "tokenizer/tokenizer.json").write_text("{"),
    "damaged scheduler": lambda folder: (folder / "scheduler/scheduler_config.json").write_text("["),
    "tokenizer of none": lambda folder: without("tokenizer", folder),
    "text encoder of none": lambda folder: without("text_encoder", folder),
    "vae of none": lambda folder: without("vae", folder),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_pipeline_is_refused_in_one_sentence(model: Path, name: str) -> None:
    DAMAGE[name](model)
    with pytest.raises(RequestError) as caught:
        load_pipeline(str(model), CPU)
    assert str(model) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_pipeline_without_a_denoiser_is_refused(model: Path, small_config, tmp_path: Path) -> None:
    without("unet", model)
    with pytest.raises(RequestError, match="unet"):
        plan(small_config.model_copy(update={"model": str(model)}), tmp_path / "run", host=default_host())


def test_fingerprints_know_weights_and_shapes() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 4)
    before = fingerprint(layer)
    assert before == fingerprint(layer)
    with torch.no_grad():
        layer.bias[1] += 1e-3
    assert fingerprint(layer) != before


def test_a_pipeline_fingerprint_covers_the_text_encoder(sd_folder: Path) -> None:
    pipeline = load_pipeline(str(sd_folder), CPU)
    before = pipeline_fingerprint(pipeline)
    next(pipeline.text_encoder.parameters()).add_(1)
    assert pipeline_fingerprint(pipeline) != before


def test_a_device_that_is_not_there_is_refused() -> None:
    assert device_of("cpu") == CPU
    if not torch.cuda.is_available():
        assert device_of("auto") == CPU
        with pytest.raises(RequestError, match="device 'cuda' is not available"):
            device_of("cuda")
