"""The training objective: diffusion targets and their weights, distillation, the budget and the spread of the codes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor, nn

from aptp.core import distributed
from aptp.core.errors import RequestError

MIN_SNR_GAMMA = 5.0
"""Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy"."""


class Diffused(NamedTuple):
    """A training example of the denoiser: its input, what it should answer, the weight of its error, its own times."""

    noisy: Float[Tensor, "batch channels height width"]
    target: Float[Tensor, "batch channels height width"]
    weight: Float[Tensor, "batch"]
    timesteps: Num[Tensor, "batch"]
    """What the denoiser is told: the training time steps themselves, or in flow matching T σ."""


def diffuse(scheduler, latents: Tensor, noise: Tensor, timesteps: Int[Tensor, "batch"]) -> Diffused:
    """Noise the latents and say what the model should predict.

    Args:
        scheduler: a diffusers scheduler with `alphas_cumprod` and prediction type `epsilon` or `v_prediction`, or one
            of flow matching with a fixed shift.
        latents, noise: [batch, channels, height, width].
        timesteps: [batch] training time steps.

    The weight is min-SNR (γ = 5): min(SNR, γ)/SNR for ε, min(SNR + 1, γ)/(SNR + 1) for v. That of flow is 1: its
    scheduler weighs times by its shift, which moves them towards noise.

    Raises:
        RequestError: for a scheduler that predicts something else, or shifts times by the picture's size.
    """
    kind = scheduler.config.get("prediction_type", "flow_prediction")
    if kind == "flow_prediction":
        sigmas = flow_sigmas(scheduler, timesteps)
        share = sigmas.to(latents).view(-1, 1, 1, 1)
        told = sigmas * scheduler.config.num_train_timesteps
        return Diffused((1 - share) * latents + share * noise, noise - latents, torch.ones_like(sigmas), told)
    if kind not in ("epsilon", "v_prediction"):
        raise RequestError(
            f"the scheduler predicts {kind!r}; epsilon, v_prediction and flow_prediction can be trained."
        )
    alphas = scheduler.alphas_cumprod.to(latents.device)[timesteps]  # float32: a half's 1 − α is mostly error
    signal, scale = (share.sqrt().to(latents.dtype).view(-1, 1, 1, 1) for share in (alphas, 1 - alphas))
    noisy = signal * latents + scale * noise
    snr = alphas / (1 - alphas)
    if kind == "epsilon":
        return Diffused(noisy, noise, (MIN_SNR_GAMMA / snr).clamp(max=1), timesteps)
    weight = (snr + 1).clamp(max=MIN_SNR_GAMMA) / (snr + 1)
    return Diffused(noisy, signal * noise - scale * latents, weight, timesteps)


def flow_sigmas(scheduler, timesteps: Int[Tensor, "batch"]) -> Float[Tensor, "batch"]:
    """The share σ of noise at training time steps: σ = su / (1 + (s − 1)u), u = (t + 1)/T, with the scheduler's shift.

    Worked out from its configuration, since sampling overwrites the table that a scheduler starts with (Esser et al.
    2024, "Scaling Rectified Flow Transformers", section 5.3.2).
    """
    config = scheduler.config
    shift = config.get("shift", config.get("flow_shift"))
    if shift is None or config.get("use_dynamic_shifting") or config.get("invert_sigmas"):
        raise RequestError(
            f"{type(scheduler).__name__} has no fixed shift from pictures to noise (see use_dynamic_shifting and "
            "invert_sigmas); a flow-matching scheduler with a shift can be trained."
        )
    share = (timesteps + 1).float() / config.num_train_timesteps
    return shift * share / (1 + (shift - 1) * share)


def weighted_mse(prediction: Tensor, target: Tensor, weight: Float[Tensor, "batch"]) -> Float[Tensor, ""]:
    """Mean over the batch of each example's mean squared error times its weight."""
    return ((prediction - target).square().flatten(1).mean(1) * weight).mean()


@contextmanager
def watch(module: nn.Module, paths: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Collect the outputs of the named submodules of each forward pass inside the context, by path.

    A block may answer with an output object, a tensor or a tuple, whose first tensor is found at the block's path and
    any other, such as the second stream of a joint block, at `path:place`.
    """
    seen: dict[str, Tensor] = {}
    handles = []
    for path in paths:

        def hook(block: nn.Module, args: tuple, output: object, path: str = path) -> None:
            answers = output if isinstance(output, tuple) else (getattr(output, "sample", output),)
            for place, answer in enumerate(answers):
                if isinstance(answer, Tensor):
                    seen[f"{path}:{place}" if place else path] = answer

        handles.append(module.get_submodule(path).register_forward_hook(hook))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def block_distillation(
    student: dict[str, Tensor],
    teacher: dict[str, Tensor],
    by_variance: bool = True,
    variances: Float[Tensor, "blocks"] | None = None,
) -> Float[Tensor, ""]:
    """Mean over blocks of the MSE between their outputs.

    Args:
        by_variance: divide each block's by the variance of the teacher's output, so that none drowns the others (the
            paper's own: no).
        variances: where `teacher` is a part of the global batch, those of the whole.
    """
    errors = torch.stack([(student[path].float() - seen.float()).square().mean() for path, seen in teacher.items()])
    if not by_variance:
        return errors.mean()
    variances = block_variances([moments_of(teacher)]) if variances is None else variances
    return (errors / variances.clamp(min=1e-8).to(errors)).mean()


class Moments(NamedTuple):
    """How many values each block answered with, and their variance and mean."""

    size: Int[Tensor, "blocks"]
    variance: Float[Tensor, "blocks"]
    mean: Float[Tensor, "blocks"]


def moments_of(outputs: Mapping[str, Tensor]) -> Moments:
    """Of each block's output, one after another."""
    found = [torch.var_mean(seen.detach().float()) for seen in outputs.values()]
    size = torch.tensor([seen.numel() for seen in outputs.values()], device=found[0][0].device)
    return Moments(size, *(torch.stack(each) for each in zip(*found, strict=True)))


def block_variances(parts: Sequence[Moments]) -> Float[Tensor, "blocks"]:
    """The variance of each block's output over the global batch, in float64, from this process's equal parts of it."""
    size = parts[0].size
    mine = torch.stack([torch.stack([part.variance, part.mean]) for part in parts])
    variances, means = distributed.gather(mine.double()).unbind(1)  # [parts of all, blocks]
    within = ((size - 1) * variances).sum(0)
    between = (size * (means - means.mean(0)).square()).sum(0)
    return (within + between) / (len(means) * size - 1)


def resource_loss(cost: Float[Tensor, "batch"], target: float) -> Float[Tensor, ""]:
    """|log(c̄ / p)| of the batch's mean cost, both fractions of dense."""
    return (cost.mean() / target).log().abs()


def spread_loss(cost: Float[Tensor, "experts"]) -> Float[Tensor, ""]:
    """−std(c) + 1 − max(c): experts should differ in capacity and one should stay large; one expert does not spread."""
    std = cost.std(correction=0) if cost.numel() > 1 else cost.sum() * 0
    return 1 - cost.max() - std
