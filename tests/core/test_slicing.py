"""Slicing: experts are slices of the dense model; saving, loading, and loading the wrong way."""

from __future__ import annotations

import json
import shutil
import threading

import pytest
import torch
from diffusers import UNet2DConditionModel
from hypothesis import given
from hypothesis import strategies as st

import aptp
from aptp.core import slicing
from aptp.core.errors import RequestError
from aptp.core.slicing import WEIGHTS, PassThrough, save_expert
from aptp.testing import MODELS, tiny_inputs, tiny_space, tiny_unet


def expected_weights(unet, space, architecture) -> dict[str, torch.Tensor]:
    """What must be left of the dense weights, worked out from the names of diffusers' layers alone."""
    weights = dict(unet.state_dict())
    for site, kept in zip(space.sites, architecture.kept, strict=True):
        if site.kind == "block":
            if not kept:
                weights = {name: value for name, value in weights.items() if not name.startswith(f"{site.path}.")}
            continue
        if site.kind == "resnet_channels":
            rows, columns, copies = ["conv1", "norm2", "time_emb_proj"], ["conv2"], 1
        elif site.kind == "attention_heads":
            rows, columns, copies = ["to_q", "to_k", "to_v"], ["to_out.0"], 1
        elif site.kind == "joint_attention_heads":
            rows = [*("to_q", "to_k", "to_v"), *("add_q_proj", "add_k_proj", "add_v_proj")]
            columns, copies = ["to_out.0", "to_add_out"], 1
        else:
            rows, columns = ["net.0.proj"], ["net.2"]
            copies = 1 if site.path.startswith("transformer_blocks") else 2  # a U-Net's are GEGLU: values, then gates
        for side, names in enumerate((rows, columns)):
            for name in [f"{site.path}.{layer}.{end}" for layer in names for end in ("weight", "bias")]:
                if name in weights and weights[name].ndim > side:
                    parts = weights[name].chunk(copies if side == 0 else 1, dim=side)
                    units = [unit for part in parts for unit in _choose(part.chunk(site.units, dim=side), kept)]
                    weights[name] = torch.cat(units, dim=side)
    return weights


def _choose(chunks, kept):
    return [chunks[unit] for unit in kept]


@pytest.mark.parametrize("family", MODELS)
@given(keep=st.floats(0, 1), seed=st.integers(0, 1000))
def test_experts_are_slices(family, keep, seed):
    unet = MODELS[family]()
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    space = tiny_space(unet)
    architecture = aptp.Architecture.random(space, keep, seed)
    sliced = aptp.slice(unet, space, architecture)
    expected = expected_weights(unet, space, architecture)
    found = sliced.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert unet.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())
    assert {p.data_ptr() for p in sliced.parameters()}.isdisjoint(p.data_ptr() for p in unet.parameters())


def test_an_expert_is_of_the_stock_class_and_knows_its_sizes():
    unet = tiny_unet("sdxl")
    space = tiny_space(unet)
    sliced = aptp.slice(unet, space, aptp.Architecture.random(space, 0.4, seed=1))
    assert type(sliced) is UNet2DConditionModel
    for module in sliced.modules():
        if isinstance(module, torch.nn.Linear):
            assert (module.out_features, module.in_features) == module.weight.shape
        elif isinstance(module, torch.nn.Conv2d):
            assert (module.out_channels, module.in_channels) == module.weight.shape[:2]
        elif isinstance(module, torch.nn.GroupNorm):
            assert module.num_channels == len(module.weight)
    assert any(isinstance(m, PassThrough) for m in sliced.modules())


def test_slicing_keeps_mode_type_and_what_is_frozen():
    unet = tiny_unet("sd2").to(torch.bfloat16).train()
    unet.conv_in.requires_grad_(True)
    space = tiny_space(unet)
    sliced = aptp.slice(unet, space, aptp.Architecture.random(space, 0.5))
    assert sliced.training
    for name, parameter in sliced.named_parameters():
        assert parameter.dtype == torch.bfloat16
        assert parameter.requires_grad == name.startswith("conv_in.")


def test_slicing_inside_gated_gives_an_expert_without_gates():
    unet = tiny_unet("sd2")
    space = tiny_space(unet)
    architecture = aptp.Architecture.random(space, 0.5)
    with aptp.gated(unet, space, torch.rand(space.num_gates)):
        inside = aptp.slice(unet, space, architecture)
    inputs = tiny_inputs(unet)
    with torch.no_grad():
        assert torch.equal(inside(**inputs).sample, aptp.slice(unet, space, architecture)(**inputs).sample)


def test_a_sliced_model_trains():
    unet = tiny_unet("sd2")
    space = tiny_space(unet)
    sliced = aptp.slice(unet, space, aptp.Architecture.random(space, 0.5)).requires_grad_(True)
    sliced(**tiny_inputs(unet, 2)).sample.square().mean().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in sliced.parameters())


def test_an_architecture_of_another_space_is_refused():
    unet = tiny_unet("sd2")
    width = aptp.search_space(unet, granularity="width")
    with pytest.raises(RequestError, match="another"):
        aptp.slice(unet, tiny_space(unet), aptp.Architecture.dense(width))
    foreign = tiny_space(tiny_unet("sdxl"))
    with pytest.raises(RequestError, match="another"):
        aptp.slice(unet, foreign, aptp.Architecture.random(foreign))


@pytest.fixture(scope="module", params=sorted(MODELS))
def saved(request, tmp_path_factory):
    """An expert, and its folder."""
    unet = MODELS[request.param]()
    space = tiny_space(unet)
    architecture = aptp.Architecture.random(space, 0.5, seed=2)
    expert = aptp.slice(unet, space, architecture)
    folder = tmp_path_factory.mktemp(request.param) / "00"
    save_expert(expert, architecture, folder)
    return expert, folder


def test_saved_and_loaded_gives_the_same_bits(saved):
    expert, folder = saved
    loaded = aptp.load_expert(folder)
    assert type(loaded) is type(expert)
    assert not loaded.training
    assert not any(p.is_meta for p in [*loaded.parameters(), *loaded.buffers()])
    inputs = tiny_inputs(expert, 2)
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).sample, expert(**inputs).sample)
    assert aptp.load_expert(folder, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_loading_changes_nothing_for_other_threads(saved):
    """As accelerate's `init_empty_weights` would, which patches torch itself."""
    register, made = torch.nn.Module.register_parameter, []
    threads = [threading.Thread(target=lambda: made.append(aptp.load_expert(saved[1]))) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert torch.nn.Module.register_parameter is register
        assert torch.nn.Linear(1, 1).weight.device.type == "cpu"
    assert len(made) == 4
    assert not any(tensor.is_meta for model in made for tensor in (*model.parameters(), *model.buffers()))


class Mixed(torch.nn.Module):
    """Weights, and what no state dict holds."""

    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(3, 2)
        self.register_buffer("kept", torch.ones(2))
        self.register_buffer("table", torch.arange(3.0), persistent=False)
        self.plain = [torch.arange(4.0)]
        self.scale = torch.linspace(0, 1, 3)[1].item()


def test_only_weights_are_left_out_of_what_is_made_to_be_filled():
    made = slicing._without_weights(Mixed)
    assert {name for name, tensor in (*made.named_parameters(), *made.named_buffers()) if tensor.is_meta} == {
        "inner.weight",
        "inner.bias",
        "kept",
    }
    assert torch.equal(made.table, torch.arange(3.0))
    assert torch.equal(made.plain[0], torch.arange(4.0))
    assert made.scale == 0.5
    made.load_state_dict(Mixed().state_dict(), strict=True, assign=True)
    assert made.inner.weight.device.type == "cpu"


def test_nothing_but_json_and_safetensors_is_written(saved):
    assert sorted(path.name for path in saved[1].iterdir()) == ["architecture.json", "config.json", WEIGHTS]


@pytest.mark.parametrize("options", [{}, {"ignore_mismatched_sizes": True}, {"low_cpu_mem_usage": False}])
def test_stock_loading_of_an_expert_fails_loudly(saved, options):
    with pytest.raises(OSError, match="no file named"):
        type(saved[0]).from_pretrained(saved[1], **options)


def _json(name: str, change):
    def damage(folder):
        data = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(change(data)))

    return damage


def _first_site(**changes):
    def change(data):
        data["sites"][0].update(changes)
        return data

    return _json("architecture.json", change)


def _first_cut(**changes):
    """Of a ResNet block that cannot go, of which some units stay and some go."""

    def change(data):
        next(s for s in data["sites"] if s["path"] == "down_blocks.1.resnets.0")["cuts"][0].update(changes)
        return data

    return _json("architecture.json", change)


DAMAGE = {
    "no architecture": lambda folder: (folder / "architecture.json").unlink(),
    "no config": lambda folder: (folder / "config.json").unlink(),
    "no weights": lambda folder: (folder / WEIGHTS).unlink(),
    "half the weights": lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:5000]),
    "empty weights": lambda folder: (folder / WEIGHTS).write_bytes(b""),
    "architecture is no JSON": lambda folder: (folder / "architecture.json").write_text("{"),
    "architecture is bytes": lambda folder: (folder / "architecture.json").write_bytes(b"\xff\xfe\x00"),
    "architecture is a list": lambda folder: (folder / "architecture.json").write_text("[]"),
    "config is no JSON": lambda folder: (folder / "config.json").write_text("{"),
    "config is a list": lambda folder: (folder / "config.json").write_text("[]"),
    "config of no model": _json("config.json", lambda c: {**c, "_class_name": "DDPMScheduler"}),
    "config of nothing": _json("config.json", lambda c: {**c, "_class_name": "os"}),
    "config without class": _json("config.json", lambda c: {k: v for k, v in c.items() if k != "_class_name"}),
    "config of other sizes": _json("config.json", lambda c: {**c, "block_out_channels": [32, 64]}),
    "config of nonsense": _json("config.json", lambda c: {**c, "block_out_channels": "wide"}),
    "config of impossible sizes": _json("config.json", lambda c: {**c, "block_out_channels": [17, 33]}),
    "fewer sites than units": _json("architecture.json", lambda a: {**a, "sites": a["sites"][:-1]}),
    "kept of a site too few": _json("architecture.json", lambda a: {**a, "kept": a["kept"][:-1]}),
    "units out of range": _json("architecture.json", lambda a: {**a, "kept": [[999], *a["kept"][1:]]}),
    "units that are words": _json("architecture.json", lambda a: {**a, "kept": [["one"], *a["kept"][1:]]}),
    "other units": _json("architecture.json", lambda a: {**a, "kept": [list(range(s["units"])) for s in a["sites"]]}),
    "no sites": _json("architecture.json", lambda a: {**a, "sites": [], "kept": []}),
    "another format": _json("architecture.json", lambda a: {**a, "format": 99}),
    "a path to nowhere": _first_site(path="down_blocks.9.resnets.0"),
    "a cut to nowhere": _first_cut(path="down_blocks.9.resnets.0.conv1"),
    "a cut of a container": _first_cut(path="down_blocks"),
    "an unknown side": _first_cut(side="around"),
    "chunks that do not divide": _first_cut(chunks=7),
    "units that do not divide": _first_site(units=10**6, kind="attention_heads", cuts=[]),
    "units that are no number": _first_site(units="many"),
    "units without end": _first_site(units=10**15),
    "an unknown kind": _first_site(kind="soul"),
    "an unknown field": _first_site(colour="red"),
}


@pytest.mark.parametrize("saved", ["sd2"], indirect=True)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_expert_is_refused(saved, damage, tmp_path):
    folder = shutil.copytree(saved[1], tmp_path / "expert")
    DAMAGE[damage](folder)
    with pytest.raises(RequestError) as error:
        aptp.load_expert(folder)
    assert "\n" not in str(error.value)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(RequestError, match="is not an expert"):
        aptp.load_expert(tmp_path / "nowhere")


def test_a_failed_save_leaves_the_old_expert(saved, tmp_path, monkeypatch):
    expert, folder = saved
    folder = shutil.copytree(folder, tmp_path / "expert")
    before = (folder / WEIGHTS).read_bytes()

    def fail(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(OSError, match="no space"):
        save_expert(expert, aptp.Architecture.load(folder / "architecture.json"), folder)
    assert (folder / WEIGHTS).read_bytes() == before
    assert len(list(folder.iterdir())) == 3
