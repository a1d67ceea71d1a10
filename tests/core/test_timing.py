"""Where the time goes, by a clock that the tests wind."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from aptp.core import timing
from aptp.core.timing import device_name, latencies_ms, own_times_ms, processor, repeated


class Doubling(nn.Module):
    """Moves the clock by so much when it is called, and calls the modules in it."""

    def __init__(self, spent: float, clock: list[float], **inside: nn.Module) -> None:
        super().__init__()
        self.spent, self.clock = spent, clock
        for name, module in inside.items():
            self.add_module(name, module)

    @property
    def device(self) -> torch.device:
        """To look for it takes long, as in diffusers; nobody may do so while the clock runs."""
        self.clock[0] += 100.0
        return torch.device("cpu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.clock[0] += self.spent
        for module in self.children():
            x = module(x)
        return 2 * x


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(timing, "CLOCK", lambda: now[0])
    return now


def test_own_times_are_without_those_inside(clock: list[float]) -> None:
    inner = Doubling(2.0, clock, leaf=Doubling(3.0, clock), unwatched=Doubling(5.0, clock))
    model = Doubling(1.0, clock, a=inner, b=Doubling(7.0, clock))
    x = torch.ones(1)
    before = model(x)
    assert own_times_ms(model, ["a", "a.leaf"], {"x": x}) == {"": 8000.0, "a": 7000.0, "a.leaf": 3000.0}
    assert torch.equal(model(x), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_latency_is_of_the_median_call_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[int] = []
    ticks = iter([0, 9, 9, 99, 10, 11, 20, 24, 30, 32, 40, 48, 50, 53, 60, 66])
    models = [Doubling(0, [0.0]), Doubling(0, [0.0])]
    for place, model in enumerate(models):
        model.register_forward_pre_hook(lambda *_, place=place: order.append(place))
    monkeypatch.setattr(timing, "CLOCK", lambda: next(ticks))
    assert latencies_ms(models, {"x": torch.ones(1)}, rounds=3) == [2000, 6000]
    assert order == [0, 1] * 4


def test_inputs_are_repeated_however_deep() -> None:
    one = {"x": torch.arange(6.0).view(1, 2, 3), "more": {"y": torch.ones(1)}}
    three = repeated(one, 3)
    assert torch.equal(three["x"], one["x"].expand(3, 2, 3))
    assert three["more"]["y"].shape == (3,)


def test_a_device_has_a_name() -> None:
    assert processor() in device_name(torch.device("cpu"))
    assert f"{torch.get_num_threads()} threads" in device_name(torch.device("cpu"))
