"""Where tasks are carried out: `--executor`, and what belongs to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from aptp.core.errors import RequestError

if TYPE_CHECKING:
    from aptp.cluster import Resources
    from aptp.core.child import Start

Executor = Annotated[Literal["local", "ray"], typer.Option(help="Where tasks run: here, or on a Ray cluster.")]
Cpus = Annotated[int | None, typer.Option(min=1, help="Cores that a task takes of a Ray node; by default 1.")]
Gpus = Annotated[float | None, typer.Option(min=0, help="GPUs that a task takes of a Ray node; by default none.")]
Retries = Annotated[
    int | None, typer.Option(min=0, help="Times that Ray starts a task again whose node died; by default 3.")
]


def resources_of(executor: str, **given: Any) -> Resources | None:
    """What a task takes on a cluster, or `None` where tasks run here.

    Raises:
        RequestError: for resources without a cluster, or a cluster without Ray.
    """
    asked = {name: value for name, value in given.items() if value is not None}
    if executor == "local":
        if asked:
            name, value = next(iter(asked.items()))
            raise RequestError(f"--{name} {value} is for a Ray cluster; add --executor ray, or drop it.")
        return None
    if (gpus := asked.get("gpus", 0)) > 1 and gpus % 1:
        raise RequestError(f"--gpus {gpus} is neither a part of one nor a whole number; round it.")
    from aptp.cluster import Resources, check_installed

    check_installed()
    return Resources(**asked)


@contextmanager
def started_on(resources: Resources | None, folder: Path) -> Iterator[Start | None]:
    """What starts tasks whose artifacts lie in `folder`; `None` where they run here."""
    if resources is None:
        yield None
        return
    from aptp.cluster import on_cluster

    with on_cluster(folder, resources) as start:
        yield start
