"""Programs on the nodes of a Ray cluster. Ray is imported by nothing else, and only when it is asked for."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from aptp.core.child import Child, Start
from aptp.core.errors import RequestError, gist

OURS = "APTP_"
"""Environment variables that begin so go along with a program; all others are the node's."""
CONNECT_SECONDS = 10.0
DYING_SECONDS = 3.0
"""How long after a program that was killed its node may die."""


@dataclass(frozen=True)
class Resources:
    """What a task takes of a node, and how often it is started again after its node died."""

    cpus: int = 1
    gpus: float = 0
    retries: int = 3


def check_installed() -> None:
    """Raise `RequestError` where Ray is not installed."""
    if find_spec("ray") is None:
        raise RequestError(
            "--executor ray needs the package ray, which is not installed; pip install 'aptp[ray]', or drop it."
        )


@contextmanager
def on_cluster(folder: Path, resources: Resources) -> Iterator[Start]:
    """Starts programs on the Ray cluster of `RAY_ADDRESS`, else that of this machine, else one made of it.

    They run in this process's current folder, as every node sees it, and end with the context. Of one task never two
    programs run at a time: the one that is started after a node was lost waits until the other lets go of the log.

    Args:
        folder: where they leave what they make; it has to be one folder for all nodes.

    Raises:
        RequestError: if no cluster answers, no node has the resources, or one that has does not see the folder.
    """
    import ray

    try:
        _reach(os.environ.get("RAY_ADDRESS", ""))
        ray.init(logging_level="WARNING", log_to_driver=False)
    except (OSError, ValueError) as error:
        raise RequestError(
            f"no Ray cluster answers at RAY_ADDRESS {os.environ.get('RAY_ADDRESS')!r}; start one with ray start, or "
            "unset it to use this machine."
        ) from error
    try:
        _check(folder, resources)
        options = {"num_cpus": resources.cpus, "num_gpus": resources.gpus, "max_retries": resources.retries}
        there = ray.remote(_carry_out).options(**options)
        ours = {name: value for name, value in os.environ.items() if name.startswith(OURS)}

        def start(arguments: Sequence[str], log: Path) -> _Task:
            log.write_bytes(b"")
            return _Task(there.remote(list(arguments), str(log.resolve()), os.getcwd(), ours), log)

        yield start
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """Raise `OSError` where nothing listens: Ray itself would try for minutes."""
    place = urlsplit(address if "//" in address else f"//{address}")
    if place.port:
        socket.create_connection((place.hostname, place.port), CONNECT_SECONDS).close()


class _Task:
    """A program on a node, or on its way there."""

    def __init__(self, reference: Any, log: Path) -> None:
        self._reference, self._log = reference, log

    def began(self) -> bool:
        return self._log.stat().st_size > 0

    def poll(self) -> int | None:
        import ray

        if not ray.wait([self._reference], timeout=0)[0]:
            return None
        try:
            return ray.get(self._reference)
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            with suppress(OSError), self._log.open("a", encoding="utf-8") as log:  # a full disk may be the cause
                log.write(f"aptp: Ray gave the task up: {type(cause).__name__}: {gist(cause)}\n")
            return 1

    def kill(self) -> None:
        import ray

        ray.cancel(self._reference, force=True)


def _carry_out(arguments: Sequence[str], log: str, folder: str, environment: Mapping[str, str]) -> int:
    """Run a program to its end, on a node; its exit status."""
    import ray

    with open(log, "ab", buffering=0) as output:
        fcntl.flock(output, fcntl.LOCK_EX)
        output.write(f"on node {ray.get_runtime_context().get_node_id()}\n".encode())
        child = Child(arguments, output, {**os.environ, **environment}, folder)
        try:
            status = child.wait()
            if status == -signal.SIGKILL:  # a node that dies may take the program first: then nobody is to hear of it
                time.sleep(DYING_SECONDS)
            return status
        finally:
            child.kill()


def _check(folder: Path, resources: Resources) -> None:
    """Raise `RequestError` where tasks would wait for ever, or leave what they make where nobody finds it."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked = {"CPU": resources.cpus, "GPU": resources.gpus}
    alive = [node for node in ray.nodes() if node["Alive"]]
    able = [node for node in alive if all(node["Resources"].get(name, 0) >= least for name, least in asked.items())]
    if not able:
        raise RequestError(
            f"no node of the Ray cluster has the {resources.cpus} cores and {resources.gpus:g} GPUs that a task asks "
            "for; give smaller --cpus and --gpus, or start such a node."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".seen-") as file:
            places = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in able]
            look, path = ray.remote(os.path.exists), str(Path(file.name).resolve())
            seen = ray.get([look.options(num_cpus=0, scheduling_strategy=place).remote(path) for place in places])
    except OSError as error:
        raise RequestError(f"--out {str(folder)!r} cannot be written: {error.strerror}.") from error
    for node, sees in zip(able, seen, strict=True):
        if not sees:
            raise RequestError(
                f"the node {node['NodeManagerAddress']} of the Ray cluster does not see --out {str(folder)!r}; choose "
                "a folder on a file system that all nodes share."
            )
