"""The plugin host: finds strategies by name. Built-ins come in by the same door as strangers. Imports no torch."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterable
from typing import Any

import pluggy
from pydantic import BaseModel, ValidationError

from aptp.core.errors import RequestError, gist, unknown
from aptp.core.hookspecs import Hooks, PluginSpec

KINDS = {
    "router": "aptp_routers",
    "balancer": "aptp_balancers",
    "granularity": "aptp_granularities",
    "budget": "aptp_budgets",
    "pruner": "aptp_pruners",
    "metric": "aptp_metrics",
    "dataset": "aptp_datasets",
    "encoder": "aptp_encoders",
    "denoiser": "aptp_denoisers",
}
"""Kinds of strategy and the hook that brings them."""

_BUILT_IN = ("aptp.plugins", "aptp.baselines")


class Host:
    """A registry of strategies.

    Raises:
        RequestError: on creation, if a plugin implements a hook that does not exist, or two give the same name.
    """

    def __init__(self, plugins: Iterable[Any] = (), entry_points: bool = True) -> None:
        self.manager = pluggy.PluginManager("aptp")
        self.manager.add_hookspecs(Hooks)
        for name in _BUILT_IN:
            self.manager.register(importlib.import_module(name), name)
        for plugin in plugins:
            self.manager.register(plugin)
        if entry_points:
            self._load_entry_points()
        try:
            self.manager.check_pending()
        except pluggy.PluginValidationError as error:
            raise RequestError(f"plugin {self.manager.get_name(error.plugin)!r}: {error}.") from error
        self._specs = {kind: self._collect(kind) for kind in KINDS}

    def _load_entry_points(self) -> None:
        try:
            self.manager.load_setuptools_entrypoints("aptp")
        except Exception as error:  # a stranger's module may raise anything on import
            raise RequestError(f"an installed plugin cannot be loaded: {type(error).__name__}: {error}.") from error

    def _collect(self, kind: str) -> dict[str, PluginSpec]:
        found: dict[str, tuple[PluginSpec, str]] = {}
        for implementation in getattr(self.manager.hook, KINDS[kind]).get_hookimpls():
            for spec in implementation.function():
                if spec.name in found:
                    raise RequestError(
                        f"two plugins register the {kind} {spec.name!r}: {found[spec.name][1]} and "
                        f"{implementation.plugin_name}; uninstall one of them."
                    )
                found[spec.name] = spec, implementation.plugin_name
        return {name: spec for name, (spec, _) in sorted(found.items())}

    @property
    def hook(self) -> Any:
        """The hooks themselves, to call the observers."""
        return self.manager.hook

    def specs(self, kind: str) -> dict[str, PluginSpec]:
        """All strategies of a kind, by name."""
        return self._specs[kind]

    def spec(self, kind: str, name: str) -> PluginSpec:
        """The strategy called `name`. Raises `RequestError`, with its neighbours, for an unknown one."""
        if name not in self._specs[kind]:
            raise unknown(kind, name, self._specs[kind])
        return self._specs[kind][name]

    def target(self, kind: str, name: str) -> Any:
        """The class of a strategy; imports what it needs."""
        return _imported(self.spec(kind, name).target, kind, name)

    def options_model(self, kind: str, name: str) -> type[BaseModel]:
        """The options model of a strategy, without importing the strategy where its spec names the model."""
        spec = self.spec(kind, name)
        return _imported(spec.options, kind, name) if spec.options else self.target(kind, name).Options

    def options(self, kind: str, name: str, values: dict[str, Any] | None = None) -> BaseModel:
        """Validated options of a strategy. Raises `RequestError` in one sentence for the first bad one."""
        model = self.options_model(kind, name)
        try:
            return model.model_validate(values or {})
        except ValidationError as error:
            raise RequestError(option_error(f"{kind} {name!r}", model, error)) from error

    def create(self, kind: str, name: str, values: dict[str, Any] | None = None) -> Any:
        """A strategy made with validated options."""
        return self.target(kind, name)(self.options(kind, name, values))


def option_error(owner: str, model: type[BaseModel], error: ValidationError) -> str:
    """One sentence for the first thing that is wrong with the options of `owner`."""
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return str(unknown(f"option of {owner}:", name, model.model_fields)).replace(":'", ": '")
    if first["type"] == "missing":
        return f"{owner} needs the option {name!r}."
    reason = (gist(first["ctx"]["error"]) if first["type"] == "value_error" else first["msg"]).rstrip(".")
    given = f" is {first['input']!r}" if not isinstance(first["input"], dict | BaseModel) else ""
    what = f"option {name!r} of {owner}" if name else f"options of {owner}"
    return f"{what}{given}: {reason[0].lower()}{reason[1:]}."


def _imported(target: str, kind: str, name: str) -> Any:
    module, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise RequestError(f"the {kind} {name!r} cannot be loaded from {target!r}: {error}.") from error


@functools.cache
def default_host() -> Host:
    """The host of this process: the built-ins and every installed plugin."""
    return Host()
