"""How many steps recovery takes, and who gets them."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aptp.bundle import expert_folder
from aptp.config import RecoverOptions, load_config
from aptp.core.architecture import Architecture
from aptp.core.errors import RequestError
from aptp.core.slicing import save_expert, slice
from aptp.harness.steps import joint_steps, own_steps, parts_of_schedule, shared_out, total_steps
from aptp.harness.workspace import Workspace


@given(steps=st.integers(0, 500), weights=st.lists(st.integers(0, 50), min_size=1, max_size=9).filter(any))
def test_whole_steps_are_shared_out_by_weight(steps: int, weights: list[int]) -> None:
    shares = shared_out(steps, torch.tensor(weights).double())
    assert sum(shares) == steps
    exact = [steps * weight / sum(weights) for weight in weights]
    assert all(abs(share - part) < 1 for share, part in zip(shares, exact, strict=True))
    assert all(share == 0 for share, weight in zip(shares, weights, strict=True) if not weight)


@given(
    steps=st.integers(0, 300),
    joint=st.floats(0, 1),
    prompts=st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(any),
)
def test_a_protocol_says_whose_the_steps_are(steps: int, joint: float, prompts: list[int]) -> None:
    load = torch.tensor(prompts).double() / sum(prompts)
    run, expert = (RecoverOptions(steps=steps, joint=joint, per=per) for per in ("run", "expert"))
    assert total_steps(run, load) == steps
    assert total_steps(expert, load) == steps * sum(map(bool, prompts))
    for options in (run, expert):
        assert 0 <= joint_steps(options, load) <= total_steps(options, load)
        assert len(load) > 1 or joint_steps(options, load) == 0


@given(steps=st.integers(1, 300), joint=st.floats(0, 1), experts=st.integers(2, 9))
def test_the_own_phase_goes_on_in_the_schedule_where_the_joint_one_ends(steps: int, joint: float, experts: int) -> None:
    options = RecoverOptions(steps=steps, joint=joint)
    (begin, end), own = parts_of_schedule(options, experts)
    assert (begin, own) == (0, (end, 1))
    for per in ("run", "expert"):
        load, options = torch.full((experts,), 1 / experts), options.model_copy(update={"per": per})
        assert end == pytest.approx(joint_steps(options, load) / total_steps(options, load))
    whole = ((0, 1), (0, 1))
    assert parts_of_schedule(options, 1) == whole
    assert parts_of_schedule(options.model_copy(update={"restart": True}), experts) == whole


def with_experts(work: Workspace, keeps: list[float]) -> Workspace:
    for index, keep in enumerate(keeps):
        architecture = Architecture.random(work.space, keep=keep, seed=1)
        save_expert(slice(work.dense, work.space, architecture), architecture, work.path(expert_folder(index)))
    return work


def test_every_expert_gets_as_many_where_steps_are_an_expert_s(open_work) -> None:
    work = open_work(recover={"steps": 10, "joint": 0.3, "per": "expert"})
    route = torch.tensor([0] * 50 + [2] * 10)
    load = torch.tensor([5, 0, 1]).double() / 6
    assert joint_steps(work.config.recover, load) == 6
    assert own_steps(work, route, load) == [7, 0, 7]


def test_experts_further_from_the_teacher_get_more(open_work) -> None:
    work = with_experts(open_work(recover={"steps": 100, "joint": 0.0, "share": "error"}), [0.9, 0.4, 0.4])
    route = torch.tensor([0] * 30 + [1] * 30)
    load = torch.tensor([0.5, 0.5, 0.0]).double()
    near, far, idle = own_steps(work, route, load)
    assert (near + far, idle) == (100, 0)
    assert far > near > 0
    errors = json.loads(work.path("checkpoints/recover-errors.json").read_text())
    assert far / 100 == pytest.approx(errors[1] / (errors[0] + errors[1]), abs=0.01)
    assert errors[2] == 0


def test_what_was_measured_is_kept_when_experts_have_moved_on(open_work) -> None:
    work = with_experts(open_work(recover={"steps": 100, "joint": 0.0, "share": "error"}), [0.9, 0.4])
    route, load = torch.arange(60) % 2, torch.tensor([0.5, 0.5]).double()
    before = own_steps(work, route, load)
    assert own_steps(with_experts(work, [0.4, 0.9]), route, load) == before
    work.path("checkpoints/recover-errors.json").write_text("[0.1]")
    with pytest.raises(RequestError, match=r"recover-errors\.json' does not hold the errors of 2 experts"):
        own_steps(work, route, load)


def test_experts_without_error_share_by_load(open_work) -> None:
    work = with_experts(open_work(recover={"steps": 8, "joint": 0.0, "share": "error"}), [1.0, 1.0])
    route = torch.tensor([0] * 45 + [1] * 15)
    assert own_steps(work, route, torch.tensor([0.75, 0.25]).double()) == [6, 2]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["recover.share=error", "recover.per=expert"], "set recover.share=load"),
        (["recover.start=fresh"], "set recover.joint=0"),
    ],
)
def test_settings_that_exclude_each_other_are_one_sentence(settings: list[str], words: str) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        load_config(assignments=settings)
    assert "\n" not in str(caught.value)
