"""The objective against direct formulas."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from aptp.core.errors import RequestError
from aptp.core.objective import block_distillation, diffuse, resource_loss, spread_loss, watch, weighted_mse
from aptp.testing import tiny_inputs, tiny_unet

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


@pytest.mark.parametrize(
    "scheduler", [FlowMatchEulerDiscreteScheduler(), DDPMScheduler(prediction_type="sample")], ids=["flow", "sample"]
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
