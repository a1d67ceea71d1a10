"""The host: names, duplicates, hooks, options."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
from pydantic import BaseModel, ValidationError, model_validator

from aptp import PluginSpec, hookimpl
from aptp.core.errors import RequestError
from aptp.host import KINDS, Host, default_host, option_error


def plugin(**hooks):
    """A plugin module with the given hook functions."""
    return SimpleNamespace(**{name: hookimpl(function) for name, function in hooks.items()})


def test_every_kind_has_built_ins():
    host = Host(entry_points=False)
    for kind in KINDS:
        assert host.specs(kind), kind
        for name, spec in host.specs(kind).items():
            assert spec.name == name
            assert spec.summary


@pytest.mark.parametrize(
    ("kind", "name", "hint"),
    [
        ("router", "contrastiv", "'contrastive'"),
        ("balancer", "sinkhron", "'sinkhorn'"),
        ("granularity", "widthdepth", "'width-depth'"),
    ],
)
def test_unknown_names_suggest_neighbours(kind, name, hint):
    with pytest.raises(RequestError, match=f"unknown {kind} '{name}'; did you mean .*{hint}"):
        default_host().target(kind, name)


def test_names_with_no_neighbour_list_what_is_known():
    with pytest.raises(RequestError, match=r"known: .*macs.*params"):
        default_host().spec("budget", "zzz")


class Mine:
    class Options(BaseModel, extra="forbid"):
        size: int = 1

    def __init__(self, options):
        self.options = options


def test_a_stranger_enters_by_the_same_door(monkeypatch):
    spec = PluginSpec("mine", f"{__name__}:Mine", "a stranger's")
    monkeypatch.setitem(sys.modules, __name__, SimpleNamespace(Mine=Mine))
    host = Host([plugin(aptp_routers=lambda: [spec])], entry_points=False)
    assert set(host.specs("router")) == {"mine", *Host(entry_points=False).specs("router")}
    assert host.create("router", "mine", {"size": 3}).options.size == 3
    with pytest.raises(RequestError, match="size"):
        host.options("router", "mine", {"size": "wide"})


def test_duplicates_are_refused():
    twin = plugin(aptp_balancers=lambda: [PluginSpec("sinkhorn", "x:Y", "another")])
    with pytest.raises(RequestError, match=r"two plugins register the balancer 'sinkhorn'.*aptp\.plugins"):
        Host([twin], entry_points=False)


def test_a_misspelt_hook_is_refused():
    with pytest.raises(RequestError, match="aptp_router"):
        Host([plugin(aptp_router=lambda: [])], entry_points=False)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"temprature": 1}, r"unknown option of router 'contrastive': 'temprature'; did you mean .*'temperature'"),
        ({"temperature": -1}, r"option 'temperature' of router 'contrastive' is -1: input should be greater than 0\."),
        (
            {"temperature": "hot"},
            r"option 'temperature' of router 'contrastive' is 'hot': .*valid number",
        ),
    ],
)
def test_bad_options_are_refused_in_one_sentence(values, sentence):
    with pytest.raises(RequestError, match=sentence) as error:
        default_host().options("router", "contrastive", values)
    assert "\n" not in str(error.value)


class Pair(BaseModel):
    low: int = 1
    high: int = 2

    @model_validator(mode="after")
    def _ordered(self):
        if self.low < 0:
            raise ValueError
        if self.low > self.high:
            raise ValueError(f"low is {self.low}, over high.")
        return self


@pytest.mark.parametrize(
    ("low", "sentence"),
    [(5, "options of router 'x': low is 5, over high."), (-1, "options of router 'x': valueError.")],
)
def test_options_that_do_not_go_together_are_refused_in_one_sentence(low, sentence):
    with pytest.raises(ValidationError) as error:
        Pair(low=low)
    assert option_error("router 'x'", Pair, error.value) == sentence


def test_a_needed_option_is_asked_for():
    with pytest.raises(RequestError, match="encoder 'clip' needs the option 'model'"):
        default_host().options("encoder", "clip")


@pytest.mark.parametrize("target", ["nowhere.at.all:Thing", "aptp.core.errors:Nothing"])
def test_a_target_that_is_not_there_is_refused(target):
    host = Host([plugin(aptp_metrics=lambda: [PluginSpec("broken", target, "-")])], entry_points=False)
    with pytest.raises(RequestError, match=f"metric 'broken' cannot be loaded from '{target}'"):
        host.target("metric", "broken")


def test_options_of_built_ins_are_refused_without_torch():
    """Every built-in with an options model of its own: all of them are looked at in a fresh interpreter."""
    program = """
import sys
from aptp.core.errors import RequestError
from aptp.host import KINDS, default_host
host = default_host()
for kind in KINDS:
    for name, spec in host.specs(kind).items():
        if not spec.target.startswith("aptp."):
            continue
        try:
            host.options(kind, name, {"no_such_option": 1})
        except RequestError:
            pass
        else:
            raise SystemExit(f"{kind} {name} takes anything")
        heavy = {"torch", "diffusers", "transformers"} & sys.modules.keys()
        if heavy:
            raise SystemExit(f"{kind} {name} imports {heavy} for its options")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
