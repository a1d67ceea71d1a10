"""OBS: what is dropped costs least, and what stays makes up for it."""

from __future__ import annotations

import dataclasses
from itertools import combinations

import pytest
import torch
from torch import nn

from aptp.api import search_space
from aptp.baselines._surgeon import Problem, elimination, update
from aptp.baselines.obs import OBSPruner, _rows
from aptp.core.pruner import PrunerContext
from aptp.testing import check_pruner, tiny_pruner_context, tiny_unet


@pytest.fixture
def asked() -> PrunerContext:
    unet = tiny_unet()
    return tiny_pruner_context(unet, search_space(unet, "width"))


def random_problem(units: int = 4, size: int = 3) -> tuple[Problem, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, units * size, generator=generator, dtype=torch.float64)
    inputs = inputs @ torch.randn(units * size, units * size, generator=generator, dtype=torch.float64)
    weight = torch.randn(5, units * size, generator=generator, dtype=torch.float64)
    return Problem(weight, inputs.T @ inputs), inputs


def test_the_update_is_the_least_squares_answer() -> None:
    problem, inputs = random_problem()
    kept = torch.tensor([True, False, True, False])
    columns = kept.repeat_interleave(3)
    best = torch.linalg.lstsq(inputs[:, columns], inputs @ problem.weight.T).solution.T
    answer = update(problem, kept)
    torch.testing.assert_close(answer[:, columns], best)
    assert (answer[:, ~columns] == 0).all()


def test_scores_are_the_errors_that_stay() -> None:
    """Of every prefix of the order, and in every step no other unit would have added less."""
    problem, inputs = random_problem()
    scores = elimination([problem], 4)
    order = scores.argsort().tolist()

    def error(gone: tuple[int, ...]) -> float:
        kept = torch.tensor([unit not in gone for unit in range(4)])
        return float((inputs @ (update(problem, kept) - problem.weight).T).square().sum())

    for count in range(1, 5):
        gone = tuple(order[:count])
        assert float(scores[gone[-1]]) == pytest.approx(error(gone))
        assert error(gone) == pytest.approx(min(error((*gone[:-1], other)) for other in order[count - 1 :]))
    assert error(tuple(order[:1])) == min(error(one) for one in combinations(range(4), 1))


def test_a_site_with_two_layers_adds_their_errors_by_what_they_matter() -> None:
    problem, _ = random_problem()
    alone = elimination([problem], 4)
    double = dataclasses.replace(problem, sensitivity=2.0)
    torch.testing.assert_close(elimination([problem, double], 4), 3 * alone)


def test_inputs_of_a_convolution_are_those_of_its_window() -> None:
    layer = nn.Conv2d(4, 5, 3, padding=1, bias=False).double()
    example = torch.randn(1, 4, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(_rows(layer, example) @ layer.weight.flatten(1).T, layer(example)[0].flatten(1).T)


def test_problems_are_of_the_inputs_and_gradients_of_all_batches(asked: PrunerContext) -> None:
    """Collected again with hooks of torch's own backward pass and its unfolding."""
    batches, damping = 2, 0.01
    problems = OBSPruner(OBSPruner.Options(batches=batches, damping=damping)).problems(asked)
    convolution, linear = "down_blocks.0.resnets.0.conv2", "mid_block.attentions.0.transformer_blocks.0.ff.net.2"
    inputs: dict[str, list[torch.Tensor]] = {convolution: [], linear: []}
    slopes: dict[str, list[torch.Tensor]] = {convolution: [], linear: []}
    handles = []
    for path in inputs:
        layer = asked.module.get_submodule(path)
        handles += [
            layer.register_forward_pre_hook(lambda _, args, path=path: inputs[path].append(args[0].detach())),
            layer.register_full_backward_hook(lambda _, __, given, path=path: slopes[path].append(given[0])),
        ]
    for loss in asked.calibration_loss(batches=batches):
        loss.backward()
    for handle in handles:
        handle.remove()
    unfolded = {
        convolution: [nn.functional.unfold(x, 3, padding=1).transpose(1, 2).flatten(0, 1) for x in inputs[convolution]],
        linear: [x.flatten(0, -2) for x in inputs[linear]],
    }
    for path, parts in unfolded.items():
        rows = torch.cat(parts).double()
        hessian = rows.T @ rows
        hessian += damping * hessian.diagonal().mean() * torch.eye(len(hessian))
        torch.testing.assert_close(problems[path].hessian, hessian, rtol=1e-5, atol=1e-6)
        assert len(slopes[path]) == batches
        wanted = sum(float(slope.double().square().mean()) for slope in slopes[path])
        assert problems[path].sensitivity == pytest.approx(wanted, rel=1e-4)


def test_the_layers_err_less_than_after_plain_removal(asked: PrunerContext) -> None:
    pruner = OBSPruner(OBSPruner.Options(batches=3, damping=1e-6))
    pruned, problems = pruner.prune(asked), pruner.problems(asked)
    cut = 0
    for site, place in zip(asked.space.sites, asked.space.slices, strict=True):
        kept = pruned.architecture.gates[place].bool()
        (tap,) = site.taps
        assert (f"{tap}.weight" in pruned.weights) == (not kept.all())
        if kept.all():
            continue
        cut += 1
        problem = problems[tap]
        stays = kept.repeat_interleave(problem.weight.shape[1] // site.units)
        updated = pruned.weights[f"{tap}.weight"].double().flatten(1)
        removed, updated = problem.weight * stays, updated * stays
        plain, ours = (
            float(((w - problem.weight) @ problem.hessian * (w - problem.weight)).sum()) for w in (removed, updated)
        )
        assert ours < plain
    assert cut > 3


def test_damping_keeps_weights_near(asked: PrunerContext) -> None:
    moved = []
    for damping in (1e-4, 1e4):
        pruned = OBSPruner(OBSPruner.Options(damping=damping)).prune(asked)
        steps = []
        for name, weight in pruned.weights.items():
            stays = weight != 0
            steps.append(float((weight - asked.module.get_parameter(name).detach())[stays].abs().mean()))
        moved.append(sum(steps) / len(steps))
    assert moved[1] < 0.01 * moved[0]


def test_a_layer_whose_inputs_are_zero_can_go(asked: PrunerContext) -> None:
    with torch.no_grad():
        asked.module.mid_block.attentions[0].transformer_blocks[0].attn1.to_v.weight.zero_()
    pruned = OBSPruner(OBSPruner.Options()).prune(asked)
    assert all(weight.isfinite().all() for weight in pruned.weights.values())


def test_conforms() -> None:
    check_pruner(OBSPruner(OBSPruner.Options()), targets=(0.5,))
