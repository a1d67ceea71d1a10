"""What a method is called: its strategies, and the settings in which it differs from the other runs.

A setting that all runs share is not named, and neither is its usual value: the most frequent one among the runs.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from aptp.config import RunConfig
from aptp.core.record import Record, Result
from aptp.kept import ONCE, once, searches
from aptp.report.comparison.protocols import belongs_to_protocol

Flat = dict[str, str]
"""A configuration by dotted keys, its values as texts."""
Kind = Literal["dense", "single", "routed"]

STRATEGIES = ("pruner", "router", "balancer", "granularity", "encoder")
UNNAMED = {"seed", "device", "compare", "model", "budget.target", "checkpointing", "trackers"}
"""Settings that are coordinates of a figure, or no part of the method."""
ASIDE = ("prepare.", "evaluate.", "data.", "metrics", "budget.")
"""Starts of the names of settings that say what is measured, and on what."""
OF_EXPERTS = ("encoder", "recover.joint", "recover.restart", "recover.share")
"""Starts of the names of settings that a single model does not have."""
OF_SEARCH = ("search.", "relaxation.")
"""Nor these, unless it is found by a search."""
OF_START = ("search.start", "search.steepness")


@dataclass(frozen=True)
class Method:
    """A row of the comparison. Equal methods have equal names, apart from what belongs to the protocol."""

    base: str
    kind: Kind
    strategies: tuple[tuple[str, str], ...] = ()
    """Kind of strategy → its name."""
    settings: tuple[tuple[str, str], ...] = ()
    """Differences from the usual settings, in the order of the configuration."""

    @property
    def name(self) -> str:
        return ", ".join([self.base, *(f"{key}={value}" for key, value in self.settings)])

    @property
    def full_name(self) -> str:
        """With the balancer, even where the runs have only one."""
        strategies = dict(self.strategies)
        parts = [f"{strategies['router']} + {strategies['balancer']}"] if "router" in strategies else [self.base]
        return ", ".join([*parts, *(f"{key}={value}" for key, value in self.settings)])

    def without(self, key: str) -> Method:
        """The method that differs in no such setting."""
        kept = tuple((name, value) for name, value in self.settings if name != key)
        return Method(self.base, self.kind, self.strategies, kept)

    def differences(self, other: Method) -> list[str]:
        """In what this method differs from another one, as `router=kmeans` or `experts=8`."""
        mine, theirs = ({**dict(m.strategies), **dict(m.settings)} for m in (self, other))
        changed = [key for key in {**theirs, **mine} if mine.get(key) != theirs.get(key)]
        return [f"{key}={mine[key]}" if key in mine else f"usual {key}" for key in changed]


def flat(config: Mapping[str, Any], prefix: str = "") -> Flat:
    """A configuration by dotted keys; a strategy stands under its kind, its options under the kind's name."""
    found: Flat = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            if "name" in value:
                found[prefix + key] = str(value["name"])
            found |= flat({k: v for k, v in value.items() if k != "name"}, f"{prefix}{key}.")
        else:
            found[prefix + key] = text(value)
    return found


def text(value: Any) -> str:
    """A value as it is written on the command line, numbers without noughts that say nothing."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, int | float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def config_of(record: Record, result: Result) -> Flat:
    """The configuration of a row: the run's own, or that of a static pruner that ran beside.

    What it lacks is filled in: as it once was where that is known, else by today's default. A static pruner has no
    experts, and most have no search: so no settings of them.
    """
    config = {**record.config}
    beside = next((c for c in config.get("compare") or [] if _name(c) == result.name), None)
    if beside is not None:
        config["pruner"] = beside
    alone = config.get("pruner") is not None
    if alone:
        config |= {"router": None, "balancer": None, "experts": None}
    parts = {key: value for key, value in config.items() if value is not None}
    found = {**_defaults(), **{key: text(value) for key, value in once(parts).items()}, **flat(parts)}
    if alone:
        none = OF_EXPERTS if searches(config) else OF_EXPERTS + OF_SEARCH
        return {key: value for key, value in found.items() if not key.startswith(none)}
    idle = result.search_steps == 0  # then nothing of a search but where it would have started
    return {k: v for k, v in found.items() if not (idle and k.startswith("search.") and not k.startswith(OF_START))}


def _name(choice: Any) -> str:
    return choice["name"] if isinstance(choice, Mapping) else str(choice).partition(":")[0]


@cache
def _defaults() -> Flat:
    """What an older record may lack: the defaults of what belongs to no strategy."""
    plain = {key: value for key, value in RunConfig().model_dump(mode="json").items() if key not in STRATEGIES}
    return flat({key: value for key, value in plain.items() if key != "experts"})


class Naming:
    """Names methods after their configurations, given those of all of them."""

    def __init__(self, configs: Iterable[Flat]) -> None:
        self.values: dict[tuple[str, str], Counter[str]] = {}
        self.balancers: dict[str, set[str]] = {}
        self.pruners: set[str] = set()
        for config in configs:
            self.pruners |= {config["pruner"]} if "pruner" in config else set()
            if "router" in config:
                self.balancers.setdefault(config["router"], set()).add(config.get("balancer", ""))
            for key, value in config.items():
                self.values.setdefault(_place(key, config), Counter())[value] += 1

    def method(self, config: Flat) -> Method:
        """The method with this configuration."""
        settings = []
        for key, value in config.items():
            seen = self.values[_place(key, config)]
            if _names(key) and len(seen) > 1 and value != self.usual(key, config):
                settings.append((key, value))
        if "pruner" in config:
            return Method(config["pruner"], "single", (("pruner", config["pruner"]),), tuple(settings))
        router, balancer = config.get("router", "?"), config.get("balancer", "?")
        alone = len(self.balancers.get(router, ())) < 2 and router not in self.pruners
        base = router if alone else f"{router} + {balancer}"
        kind: Kind = "single" if config.get("experts") == "1" else "routed"
        return Method(base, kind, (("router", router), ("balancer", balancer)), tuple(settings))

    def usual(self, key: str, config: Flat) -> str:
        """The most frequent value of a setting; of several, the default, or else the first seen.

        Where an earlier version did otherwise, it is the default as soon as anything was run with it.
        """
        seen = self.values[_place(key, config)]
        most = list(seen) if key in ONCE else [value for value, count in seen.items() if count == max(seen.values())]
        default = _defaults().get(key)
        return default if default in most else max(seen, key=lambda value: seen[value])

    def shared(self) -> dict[str, str]:
        """The usual values of what some method is named after, or what an earlier version did and today's does not."""
        found = {}
        for (key, strategy), seen in self.values.items():
            usual = self.usual(key, {key.partition(".")[0]: strategy})
            if _names(key) and (len(seen) > 1 or (key in ONCE and usual != _defaults().get(key))):
                found[key] = usual
        return found


def dense_method(result: Result) -> Method:
    """The dense model, with the run's sampling steps or with fewer."""
    return Method(result.name, "dense")


def _place(key: str, config: Flat) -> tuple[str, str]:
    """A setting, and the strategy whose option it is: options of different strategies are different settings."""
    kind = key.partition(".")[0]
    return (key, config.get(kind, "")) if kind in STRATEGIES and "." in key else (key, "")


def _names(key: str) -> bool:
    named_already = key in ("pruner", "router", "balancer")
    return not (named_already or key in UNNAMED or key.startswith(ASIDE) or belongs_to_protocol(key))
