"""`aptp plugins` and `aptp doctor`: what is installed, and whether it is whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from aptp.commands.failing import Debug, working
from aptp.core.errors import RequestError, unknown

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

    from aptp.host import Host

plugins = typer.Typer(help="The strategies that are installed.", rich_markup_mode=None)
SIGNS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}


@plugins.command("list")
def list_plugins(kind: Annotated[str | None, typer.Option(help="Only this kind, e.g. router.")] = None) -> None:
    """List the strategies by kind."""
    from aptp.host import KINDS, default_host
    from aptp.terminal import show, table

    if kind is not None and kind not in KINDS:
        raise unknown("kind", kind, KINDS)
    host = default_host()
    kinds = [kind] if kind else list(KINDS)
    rows = [(k, spec.name, spec.summary, _origin(host, k, spec.name)) for k in kinds for spec in host.specs(k).values()]
    show(table(("kind", "name", "summary", "origin"), rows))


@plugins.command("show")
def show_plugin(name: Annotated[str, typer.Argument(metavar="NAME", help="Name of a strategy.")]) -> None:
    """Show a strategy and its options; every kind that has one of this name."""
    from aptp.host import KINDS, default_host
    from aptp.terminal import show, table

    host = default_host()
    kinds = [kind for kind in KINDS if name in host.specs(kind)]
    if not kinds:
        raise unknown("plugin", name, {name for kind in KINDS for name in host.specs(kind)})
    for kind in kinds:
        spec = host.spec(kind, name)
        show(f"{kind} {name}: {spec.summary}", f"from {_origin(host, kind, name)}, {spec.target}")
        rows = option_rows(host.options_model(kind, name))
        show(table(("option", "type", "default", "description"), rows) if rows else "no options")


def doctor(debug: Debug = False) -> None:
    """Check libraries, hardware, plugins and embedded assets.

    The exit status is 1 if something is broken.
    """
    with working("the examination", debug):
        from aptp.doctor import examine
        from aptp.terminal import show, table

        findings = examine()
        show(table(("", "", "found"), [("broken" if f.broken else "ok", f.subject, f.found) for f in findings]))
        if any(finding.broken for finding in findings):
            raise typer.Exit(1)


def option_rows(model: type[BaseModel]) -> list[tuple[str, str, str, str]]:
    """Name, type with bounds, default and description of each option."""
    return [
        (
            name,
            _type(field),
            "needed" if field.is_required() else repr(field.get_default(call_default_factory=True)),
            field.description or "",
        )
        for name, field in model.model_fields.items()
    ]


def _type(field: FieldInfo) -> str:
    kind: Any = field.annotation
    name = kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")
    bounds = [
        f"{SIGNS[sign]} {getattr(bound, sign)}" for bound in field.metadata for sign in SIGNS if hasattr(bound, sign)
    ]
    return ", ".join([name, *bounds])


def _origin(host: Host, kind: str, name: str) -> str:
    """The distribution that registered a strategy."""
    from aptp.host import KINDS

    distributions = {id(plugin): dist for plugin, dist in host.manager.list_plugin_distinfo()}
    for implementation in getattr(host.manager.hook, KINDS[kind]).get_hookimpls():
        if any(spec.name == name for spec in implementation.function()):
            dist = distributions.get(id(implementation.plugin))
            return f"{dist.project_name} {dist.version}" if dist else implementation.plugin_name
    raise RequestError(f"no plugin registers the {kind} {name!r}.")
