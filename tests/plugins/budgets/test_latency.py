"""The table of times: against sliced models by a clock that is exact, kept in the cache, and never falling."""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import aptp
from aptp.api import denoiser_of
from aptp.core.slicing import PassThrough
from aptp.plugins.budgets import latency
from aptp.plugins.budgets.latency import LatencyBudget, _rising, _unwatched
from aptp.testing import MODELS, tiny_inputs, tiny_space, tiny_unet


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("APTP_CACHE", str(tmp_path))
    return tmp_path / "latency"


def weighed(module: nn.Module, paths: Iterable[str], inputs: Mapping[str, Any]) -> dict[str, float]:
    """A clock that is never wrong: a module takes as long as it has parameters, but for those in others."""
    paths = {"", *paths}
    times = dict.fromkeys(paths, 0.0)
    for name, parameter in module.named_parameters():
        around = [path for path in paths if name.startswith(f"{path}.")]
        times[max(around, key=len, default="")] += parameter.numel()
    return times


@functools.cache
def weighed_model(family: str):
    model = MODELS[family]()
    space = tiny_space(model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "own_times_ms", weighed)
        costs = LatencyBudget(LatencyBudget.Options(rounds=1)).profile(
            denoiser_of(model), model, space, tiny_inputs(model)
        )
    return model, space, costs


@pytest.mark.parametrize("family", MODELS)
@given(keep=st.floats(0, 1), seed=st.integers(0, 1000))
def test_an_estimate_is_the_sum_of_what_stays(family, keep, seed):
    model, space, costs = weighed_model(family)
    architecture = aptp.Architecture.random(space, keep, seed)
    sliced = aptp.slice(model, space, architecture)
    assert costs.unit == "milliseconds"
    assert costs.cost(architecture.gates).item() == pytest.approx(sum(p.numel() for p in sliced.parameters()))
    assert not any(p.numel() for m in sliced.modules() if isinstance(m, PassThrough) for p in m.parameters())


def profile(model: nn.Module, **options: int) -> aptp.core.budget.CostModel:
    chosen = LatencyBudget.Options(**{"batch": 1, "widths": 2, "rounds": 1} | options)
    return LatencyBudget(chosen).profile(denoiser_of(model), model, tiny_space(model), tiny_inputs(model))


def test_what_was_measured_once_is_not_measured_again(cache, monkeypatch):
    unet = tiny_unet("sd2")
    first = profile(unet)
    calls = []
    monkeypatch.setattr(latency, "own_times_ms", lambda *given: calls.append(given) or weighed(*given))
    assert profile(tiny_unet("sd2", seed=1)).fingerprint == first.fingerprint, "weights take no time of their own"
    assert not calls
    assert profile(unet, batch=2).fingerprint != first.fingerprint
    assert len(calls) == 8, "two widths, watched and not, a round that warms up and one that counts"
    assert calls[0][2]["sample"].shape[0] == 2
    kept = [json.loads(file.read_text()) for file in cache.glob("*.json")]
    assert len(kept) == 2
    assert all(table["device"] and table["versions"]["torch"] == torch.__version__ for table in kept)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-40],
        lambda text: "",
        lambda text: "[]",
        lambda text: json.dumps({"milliseconds": {"": [[0, 1.0]]}}),
        lambda text: text.replace('"milliseconds"', '"seconds"'),
        lambda text: json.dumps({"milliseconds": {path: [[0, math.nan]] for path in json.loads(text)["milliseconds"]}}),
    ],
)
def test_a_damaged_table_is_measured_anew(cache, monkeypatch, damage):
    monkeypatch.setattr(latency, "own_times_ms", weighed)
    unet = tiny_unet("sd2")
    whole = profile(unet)
    (file,) = cache.glob("*.json")
    text = file.read_text()
    file.write_text(damage(text))
    with pytest.warns(UserWarning, match=rf"the table of times '{file}' is damaged \(.*\): measured anew"):
        assert profile(unet).fingerprint == whole.fingerprint
    assert file.read_text() == text


def test_where_a_model_lies_and_in_which_order_options_were_left_out_make_no_difference(cache):
    unet = tiny_unet("sd2")
    for left_out in (["dropout", "attention_type"], ["attention_type", "dropout"]):
        unet.register_to_config(_name_or_path=left_out[0], _use_default_values=left_out)
        profile(unet)
    assert len(list(cache.glob("*.json"))) == 1


@pytest.mark.parametrize("what", ["device_name", "VERSIONS"])
def test_another_device_or_version_is_measured_anew(cache, monkeypatch, what):
    profile(tiny_unet("sd2"))
    monkeypatch.setattr(latency, what, {"device_name": lambda device: "another", "VERSIONS": ("torch",)}[what])
    profile(tiny_unet("sd2"))
    assert len(list(cache.glob("*.json"))) == 2


def test_all_of_a_call_is_in_the_table(cache):
    unet = tiny_unet("sd2")
    costs = profile(unet)
    (table,) = (json.loads(file.read_text())["milliseconds"] for file in cache.glob("*.json"))
    assert table.keys() == {"", *(site.path for site in tiny_space(unet).sites)}
    assert all(ms >= 0 for times in table.values() for _, ms in times)
    own = [_rising(dict(times)) if len(times) > 1 else (times[0][1], ()) for times in table.values()]
    assert costs.dense == pytest.approx(sum(narrowest + sum(steps) for narrowest, steps in own))


def test_what_watching_took_is_taken_off():
    table = {"": {0: 10.0}, "a": {0: 5.0}, "a.b": {2: 4.0, 1: 3.0}, "ab": {1: 0.5}}
    assert _unwatched(table, 0.0) == table
    less = _unwatched(table, 6.0)  # of three parts
    assert less == {"": {0: 8.0}, "a": {0: 3.0}, "a.b": {1: 2.0, 2: 3.0}, "ab": {1: 0.0}}
    assert list(less["a.b"]) == [1, 2]


def test_a_whole_model_is_timed_on_the_same_batch():
    unet, seen = tiny_unet("sd2"), []
    unet.register_forward_pre_hook(lambda module, args, given: seen.append(len(given["sample"])), with_kwargs=True)
    times = LatencyBudget(LatencyBudget.Options(batch=3, rounds=1)).measured([unet, unet], tiny_inputs(unet))
    assert seen == [3] * 4
    assert len(times) == 2
    assert min(times) > 0


@given(times=st.lists(st.floats(0.1, 100), min_size=2, max_size=6, unique=True), seed=st.integers(0, 99))
def test_wider_is_never_faster(times, seed):
    units = sorted(torch.randperm(31, generator=torch.Generator().manual_seed(seed))[: len(times)].add(1).tolist())
    fixed, steps = _rising(dict(zip(units, times, strict=True)))
    every = [fixed + sum(steps[: count + 1]) for count in range(units[-1])]
    assert len(steps) == units[-1]
    assert min(steps) >= 0
    assert every[0] == pytest.approx(fixed)
    if times == sorted(times):
        for count, time in zip(units, times, strict=True):
            assert every[count - 1] == pytest.approx(time)


def process(rank: int, folder: str) -> None:
    """One of two, whose clock goes at a pace of its own, with a cache of its own."""
    torch.set_num_threads(1)
    os.environ["APTP_CACHE"] = f"{folder}/{rank}"
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    latency.own_times_ms = lambda *given: {path: (1 + rank) * ms for path, ms in weighed(*given).items()}
    Path(folder, f"{rank}.txt").write_text(profile(tiny_unet("sd2")).fingerprint)
    dist.destroy_process_group()


def test_two_processes_share_the_main_one_s_table(tmp_path):
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    multiprocessing.spawn(process, (str(tmp_path),), nprocs=2)
    first, second = ((tmp_path / f"{rank}.txt").read_text() for rank in range(2))
    assert first == second
    assert list(tmp_path.glob("0/latency/*.json"))
    assert not (tmp_path / "1").exists(), "the other measures nothing"
