"""The objective against direct formulas."""

from __future__ import annotations

import pytest
import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from aptp.core.architecture import Architecture
from aptp.core.errors import RequestError
from aptp.core.objective import block_distillation, diffuse, resource_loss, spread_loss, watch, weighted_mse
from aptp.core.slicing import slice
from aptp.testing import tiny_inputs, tiny_sd3, tiny_space, tiny_unet

TIMES = torch.tensor([0, 1, 250, 500, 900, 999])


def latents() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(6, 4, 8, 8), torch.randn(6, 4, 8, 8)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("zero_terminal", [False, True])
def test_inputs_and_targets_are_the_scheduler_s_own(kind, zero_terminal):
    scheduler = DDPMScheduler(prediction_type=kind, rescale_betas_zero_snr=zero_terminal)
    image, noise = latents()
    diffused = diffuse(scheduler, image, noise, TIMES)
    torch.testing.assert_close(diffused.noisy, scheduler.add_noise(image, noise, TIMES))
    target = noise if kind == "epsilon" else scheduler.get_velocity(image, noise, TIMES)
    torch.testing.assert_close(diffused.target, target)
    assert diffused.weight.isfinite().all()
    assert (diffused.weight > 0).all()


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_weights_are_min_snr(kind, dtype):
    scheduler = DDPMScheduler(prediction_type=kind)
    image, noise = (x.to(dtype) for x in latents())
    alphas = scheduler.alphas_cumprod[TIMES].double().tolist()
    snrs = [alpha / (1 - alpha) for alpha in alphas]
    expected = [min(s, 5) / s if kind == "epsilon" else min(s + 1, 5) / (s + 1) for s in snrs]
    weight = diffuse(scheduler, image, noise, TIMES).weight
    assert weight.tolist() == pytest.approx(expected, rel=1e-3)


def test_pure_noise_weighs_one():
    scheduler = DDPMScheduler(prediction_type="epsilon", rescale_betas_zero_snr=True)
    assert diffuse(scheduler, *latents(), TIMES).weight[-1] == 1


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_is_the_scheduler_s_own(shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    told = scheduler.timesteps[scheduler.config.num_train_timesteps - 1 - TIMES]
    image, noise = latents()
    expected = scheduler.scale_noise(image, told, noise)
    for _ in range(2):
        diffused = diffuse(scheduler, image, noise, TIMES)
        assert torch.equal(diffused.timesteps, told)
        torch.testing.assert_close(diffused.noisy, expected)
        assert torch.equal(diffused.target, noise - image)
        assert torch.equal(diffused.weight, torch.ones(len(TIMES)))
        scheduler.set_timesteps(4)  # sampling between two steps of training
    assert diffused.timesteps[-1] == 1000
    assert torch.equal(diffused.noisy[-1], noise[-1])


def test_a_step_of_the_scheduler_along_the_flow_s_target_gives_back_the_picture():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(1)
    image, noise = latents()
    diffused = diffuse(scheduler, image, noise, torch.full((6,), 999))
    assert scheduler.timesteps[0] == diffused.timesteps[0]
    torch.testing.assert_close(scheduler.step(diffused.target, scheduler.timesteps[0], diffused.noisy)[0], image)


def test_the_times_of_noise_schedules_are_the_steps_themselves():
    assert torch.equal(diffuse(DDPMScheduler(), *latents(), TIMES).timesteps, TIMES)


def test_solvers_of_a_flow_have_its_shift_too():
    solver = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, lower_order_final=True
    )
    expected = diffuse(FlowMatchEulerDiscreteScheduler(shift=3.0), *latents(), TIMES).timesteps
    assert torch.equal(diffuse(solver, *latents(), TIMES).timesteps, expected)


@pytest.mark.parametrize(
    "scheduler",
    [
        DDPMScheduler(prediction_type="sample"),
        FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
        CMStochasticIterativeScheduler(),
    ],
    ids=["sample", "a shift by size", "from noise to pictures", "consistency"],
)
def test_other_predictions_are_refused(scheduler):
    with pytest.raises(RequestError, match="can be trained"):
        diffuse(scheduler, *latents(), TIMES)


def test_weighted_mse():
    a, b = torch.randn(2, 3, 4, 4).unbind()
    weight = torch.tensor([1.0, 2.0, 0.0])
    expected = ((a[0] - b[0]).square().mean() + 2 * (a[1] - b[1]).square().mean()) / 3
    torch.testing.assert_close(weighted_mse(a[:, None], b[:, None], weight), expected)


def test_watch_collects_each_pass_and_goes():
    unet = tiny_unet("sd2")
    paths = ["down_blocks.0", "mid_block", "up_blocks.1.attentions.0", "up_blocks.1"]
    with watch(unet, paths) as seen:
        unet(**tiny_inputs(unet, 2))
        first = dict(seen)
        unet(**tiny_inputs(unet, 2, seed=1))
    assert list(seen) == paths
    assert all(value.shape[0] == 2 and value.ndim == 4 for value in seen.values())
    assert not torch.equal(first["mid_block"], seen["mid_block"])
    assert not any(m._forward_hooks for m in unet.modules())
    with pytest.raises(ZeroDivisionError), watch(unet, paths):
        raise ZeroDivisionError
    assert not any(m._forward_hooks for m in unet.modules())


def test_both_streams_of_a_joint_block_are_watched_while_they_go_on():
    model = tiny_sd3()
    space, blocks = tiny_space(model), ["transformer_blocks.1", "transformer_blocks.2"]
    gates = space.ones()
    gates[space.slices[[site.path for site in space.sites].index("transformer_blocks.2")]] = 0
    with watch(model, blocks) as teacher:
        model(**tiny_inputs(model, 2))
    assert {path: value.shape[1] for path, value in teacher.items()} == {
        "transformer_blocks.1": 5,
        "transformer_blocks.1:1": 16,
        "transformer_blocks.2:1": 16,
    }
    small = slice(model, space, Architecture(space, gates))
    with watch(small, blocks) as student:
        small(**tiny_inputs(model, 2))
    loss = block_distillation(student, teacher)
    passed, left = teacher["transformer_blocks.1:1"], teacher["transformer_blocks.2:1"]
    torch.testing.assert_close(loss, (passed - left).square().mean() / left.var() / 3)


def test_no_block_drowns_the_others():
    student, teacher = ({name: torch.randn(4, 8) for name in "ab"} for _ in range(2))
    loss = block_distillation(student, teacher)
    scaled = block_distillation({**student, "b": student["b"] * 1e3}, {**teacher, "b": teacher["b"] * 1e3})
    torch.testing.assert_close(loss, scaled)
    expected = sum((student[n] - teacher[n]).square().mean() / teacher[n].var() for n in "ab") / 2
    torch.testing.assert_close(loss, expected)
    plain = sum((student[n] - teacher[n]).square().mean() for n in "ab") / 2
    torch.testing.assert_close(block_distillation(student, teacher, by_variance=False), plain)
    assert block_distillation(teacher, teacher) == 0
    assert block_distillation({"c": torch.ones(2, 2)}, {"c": torch.ones(2, 2)}) == 0


def test_resource_loss():
    cost = torch.tensor([0.5, 0.7], dtype=torch.float64)
    assert resource_loss(cost, 0.6).item() == pytest.approx(0, abs=1e-12)
    assert resource_loss(cost, 0.3).item() == pytest.approx(torch.tensor(2.0).log().item())
    assert resource_loss(cost, 1.2).item() == pytest.approx(torch.tensor(2.0).log().item())


def test_spread():
    cost = torch.tensor([0.4, 0.8], dtype=torch.float64, requires_grad=True)
    assert spread_loss(cost).item() == pytest.approx(1 - 0.8 - 0.2)
    for values in ([0.7], [0.6, 0.6, 0.6]):  # one expert, and experts that are alike, do not spread: no NaN
        cost = torch.tensor(values, dtype=torch.float64, requires_grad=True)
        loss = spread_loss(cost)
        assert loss.item() == pytest.approx(1 - values[0])
        (slope,) = torch.autograd.grad(loss, cost)
        assert slope.isfinite().all()
        assert slope.sum().item() == pytest.approx(-1)
