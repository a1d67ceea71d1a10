"""What a pruner is given in a run."""

from __future__ import annotations

import pytest
import torch

from aptp.core.errors import RequestError
from aptp.core.files import write_json
from aptp.core.progress import Quiet
from aptp.core.record import Record
from aptp.harness import run
from aptp.harness.pruning import pruner_context
from aptp.harness.recover import make_experts
from aptp.harness.search import search
from aptp.harness.workspace import Workspace
from aptp.host import default_host

STATIC = {"experts": 1, "router": {"name": "constant"}, "balancer": "none"}


def losses(work: Workspace, count: int, timestep: int | None = None) -> list[float]:
    with torch.no_grad():
        return [float(loss) for loss in pruner_context(work).calibration_loss(batches=count, timestep=timestep)]


def test_every_call_starts_with_the_same_batches(open_work) -> None:
    work = open_work(search={"batch": 4})
    first, longer = losses(work, 2), losses(work, 3)
    assert first == longer[:2]
    assert len(set(longer)) == 3


def test_at_one_time_the_loss_is_the_plain_error(open_work, monkeypatch: pytest.MonkeyPatch) -> None:
    work = open_work(search={"batch": 4})
    seen = []
    monkeypatch.setattr(work.denoiser, "predict", lambda module, noisy, times, text: seen.append(times) or noisy * 0)
    (loss,) = losses(work, 1, timestep=10)
    assert seen[0].tolist() == [10] * 4
    assert loss == pytest.approx(1, rel=0.2)  # v is nearly the noise there, and zero is the answer
    losses(work, 1)
    assert len(set(seen[1].tolist())) > 1


@pytest.mark.parametrize("pruner", ["taylor", "obs", "diff-pruning", "block-influence"])
def test_what_saves_memory_in_a_search_does_so_here_and_changes_no_choice(open_work, pruner: str) -> None:
    """Micro-batches and recomputed activations; and no more than a micro-batch is ever in the model."""
    depth = {"granularity": "depth", "budget": 0.8} if pruner == "block-influence" else {}
    static = STATIC | depth | {"pruner": pruner}
    plain = search(open_work("plain", **static, search={"batch": 8}))
    work = open_work("sparing", **static, search={"batch": 8, "accumulate": 4}, checkpointing=True)
    sizes, recomputed = set(), set()

    def watch(model: torch.nn.Module, args: tuple) -> None:
        sizes.add(len(args[0]))
        recomputed.add(checkpointed(model))

    work.dense.register_forward_pre_hook(watch)
    assert torch.equal(search(work).architectures[0].gates, plain.architectures[0].gates)
    assert sizes == {2}
    assert recomputed == {True}
    assert not checkpointed(work.dense)


def checkpointed(model: torch.nn.Module) -> bool:
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def test_a_bf16_run_calibrates_in_bf16(open_work) -> None:
    exact, rounded = (losses(open_work(p, search={"batch": 4}, precision=p), 2) for p in ("fp32", "bf16"))
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.05)


def test_weights_are_differentiable_while_a_pruner_looks(open_work) -> None:
    work = open_work(**STATIC, pruner="taylor", search={"batch": 4})
    answer = search(work)
    assert answer.expected == pytest.approx(0.7, rel=0.01)
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in work.dense.parameters())


def test_the_learned_code_is_that_of_a_constant_router(open_work) -> None:
    settings = STATIC | {"search": {"steps": 4, "batch": 4, "start": None}}
    searched = search(open_work("searched", **settings))
    work = open_work("learned", **settings, pruner="learned")
    learned = search(work)
    assert torch.equal(learned.architectures[0].gates, searched.architectures[0].gates)
    assert (learned.uncalibrated, learned.expected) == (searched.uncalibrated, searched.expected)
    assert learned.uncalibrated != learned.expected
    assert len(work.path("logs/search.jsonl").read_text().splitlines()) == 4
    assert any("the search ended at" in text for text in work.record.warnings)
    assert all(parameter.grad is None for parameter in work.dense.parameters())


def test_weights_that_obs_updates_reach_the_expert(open_work) -> None:
    work = open_work(**STATIC, pruner={"name": "obs", "batches": 1}, search={"batch": 4})
    answer = search(work)
    assert answer.weights
    for name, weight in answer.weights.items():
        assert weight.shape == work.dense.get_parameter(name).shape
        assert not torch.equal(weight, work.dense.get_parameter(name))


def test_what_was_pruned_stays_when_a_run_goes_on(open_work, monkeypatch: pytest.MonkeyPatch) -> None:
    work = open_work(**STATIC, pruner={"name": "taylor", "batches": 1}, search={"batch": 4})
    begun = search(work)
    make_experts(work, begun)
    write_json(work.path("router/router.json"), {})
    monkeypatch.setattr(type(work.pruner), "prune", lambda *_: pytest.fail("it is pruned again"))
    again = search(work)
    assert torch.equal(again.architectures[0].gates, begun.architectures[0].gates)
    assert (again.expected, again.uncalibrated) == (begun.expected, begun.uncalibrated)


def opened(config, tmp_path) -> Workspace:
    record = Record(started="", config={}, versions={}, hardware={})
    return Workspace.open(config.settled(), tmp_path, default_host(), Quiet(), record)


@pytest.mark.parametrize("role", ["pruner", "compare"])
def test_a_pruner_that_does_not_fit_is_refused_before_any_work(small_config, tmp_path, role: str) -> None:
    choice = {"name": "bk-sdm", "size": "tiny"}
    changes = {role: choice if role == "pruner" else [choice]}
    config = type(small_config).model_validate(small_config.model_dump() | changes)
    with pytest.raises(RequestError, match="'bk-sdm' of size 'tiny' drops"):
        opened(config, tmp_path)


def test_no_target_is_asked_of_a_pruner_that_takes_none(small_config, tmp_path) -> None:
    changes = {"granularity": "depth", "budget": 0.01, "compare": []}
    config = type(small_config).model_validate(small_config.model_dump() | changes)
    with pytest.raises(RequestError, match="under the floor"):
        opened(config, tmp_path)
    work = opened(config.model_copy(update={"pruner": type(config.router)(name="bk-sdm")}), tmp_path)
    assert 0.5 < search(work).expected < 0.9


def test_a_cost_of_its_own_is_not_called_the_target(small_config, tmp_path) -> None:
    changes = {"granularity": "depth", "pruner": "bk-sdm", "compare": [], "metrics": []}
    changes |= {"recover": {"steps": 0}, "evaluate": small_config.evaluate.model_dump() | {"dense_steps": [1, 1]}}
    config = type(small_config).model_validate(small_config.model_dump() | changes).resolved(default_host())
    record = run(config, tmp_path / "run", host=default_host(), progress=Quiet())
    assert record.budget.expected == record.experts[0].fraction != record.budget.target == 0.7
    (warning,) = record.warnings
    assert "takes no target" in warning
    dense, fewer, pruned = record.results
    assert (fewer.name, fewer.fraction, fewer.sampling_steps) == ("dense, 1 step", 0.5, 1)
    assert (fewer.macs, fewer.teacher_error, fewer.latency_ms) == (dense.macs, None, None)
    assert (pruned.name, pruned.sampling_steps) == ("bk-sdm", None)
    assert len(list((tmp_path / "run/samples/dense-1").glob("*.png"))) == 12
    assert record.results[0].samples != fewer.samples
