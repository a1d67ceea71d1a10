"""`aptp serve`: a finished run behind HTTP."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from aptp.commands.failing import Debug, checking, working
from aptp.commands.prompts import Margin
from aptp.core.errors import RequestError
from aptp.core.extras import check_extra
from aptp.serving.access import KEY, bind, is_loopback, read_key
from aptp.serving.limits import Dtype, Limits

DEFAULT = Limits()


def serve(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run or a bundle, or a hub name.")],
    host: Annotated[str, typer.Option(help="Address to bind; one that others reach needs an API key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 is any free one.")] = 8000,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    dtype: Annotated[Dtype, typer.Option(help="What pictures are drawn in.")] = "float32",
    memory_limit: Annotated[
        float | None,
        typer.Option(min=0, metavar="GB", help="Denoisers on the device at once, in 10⁹ bytes; all by default."),
    ] = None,
    key_file: Annotated[
        Path | None, typer.Option("--api-key-file", metavar="FILE", help=f"Holds the API key; or set {KEY}.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Pictures drawn at a time.")] = DEFAULT.batch,
    wait: Annotated[
        float, typer.Option(min=0, max=60, help="Seconds that a picture waits, at most, for others to fill its batch.")
    ] = DEFAULT.wait,
    queue: Annotated[int, typer.Option(min=1, help="Pictures taken and not yet answered.")] = DEFAULT.queue,
    timeout: Annotated[
        float, typer.Option(min=0.1, max=86400, help="Seconds from a request to its answer.")
    ] = DEFAULT.timeout,
    steps: Annotated[int, typer.Option(min=1, help="Sampling steps, unless asked.")] = DEFAULT.steps,
    guidance: Annotated[
        float | None,
        typer.Option(
            min=0, max=DEFAULT.max_guidance, help="Scale of guidance, unless asked; the model's own by default."
        ),
    ] = DEFAULT.guidance,
    margin: Margin = 0.0,
    max_steps: Annotated[int, typer.Option(min=1, help="Most sampling steps of a request.")] = DEFAULT.max_steps,
    max_count: Annotated[int, typer.Option(min=1, help="Most pictures of a request.")] = DEFAULT.max_count,
    max_prompt: Annotated[
        int, typer.Option(min=1, max=9_999, help="Most characters of a prompt.")
    ] = DEFAULT.max_prompt,
    debug: Debug = False,
) -> None:
    """Serve a finished run, or a bundle, over HTTP, as OpenAI's images endpoint, until SIGTERM or Ctrl-C."""
    check_extra("aptp serve", "serve")
    key = read_key(key_file)
    if steps > max_steps:
        raise RequestError(f"--steps {steps} is more than --max-steps {max_steps}; raise that, or ask for fewer.")
    if max_count > queue:
        raise RequestError(f"--max-count {max_count} is more than --queue {queue}; a request must fit in.")
    limits = Limits(
        batch=batch,
        wait=wait,
        queue=queue,
        timeout=timeout,
        max_count=max_count,
        max_steps=max_steps,
        max_prompt=max_prompt,
        steps=steps,
        guidance=guidance,
    )
    with checking():
        bound = bind(host, port)
        if key is None and not is_loopback(bound):
            raise RequestError(f"--host {host} lets others in, so it needs an API key: set {KEY}, or --api-key-file.")
    with working("serving", debug):
        import torch

        from aptp.monitor import Monitor
        from aptp.pipeline import RoutedPipeline
        from aptp.serving.app import LOOPBACK, create_app
        from aptp.serving.engine import LocalEngine
        from aptp.serving.server import FLUSHING, Server
        from aptp.serving.service import Service
        from aptp.terminal import Terminal

        pipe = RoutedPipeline.from_pretrained(
            run,
            device=device,
            dtype=getattr(torch, dtype),
            lazy=memory_limit is not None,
            memory_limit=None if memory_limit is None else int(memory_limit * 1e9),
        )
        if pipe.bundle.budget:
            pipe.monitor = Monitor.of(pipe.bundle)
        engine = LocalEngine(pipe, run.resolve().name if run.is_dir() else str(run), margin)
        service = Service(engine, limits)
        if pipe.monitor:
            service.metrics.watch(pipe.monitor)
        app = create_app(service, key=key, hosts=LOOPBACK | {host.lower()})
        Server(app, service, Terminal().say).run([bound])
        ended = False
        with suppress(KeyboardInterrupt):
            ended = engine.is_idle(FLUSHING)
        if not ended:
            _give_up("the server stopped with a batch still under way, which is given up")


def _give_up(why: str) -> NoReturn:
    """Leave with status 1 though a thread is at work, which Python would wait for."""
    typer.echo(f"aptp: {why}.", err=True)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
