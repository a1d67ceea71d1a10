"""The endpoints."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

from fastapi import FastAPI
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp

from aptp import __version__
from aptp.serving.errors import Refusal
from aptp.serving.guard import IMAGES, Guard
from aptp.serving.schema import ImageAnswer, ImageRequest, Picture, read
from aptp.serving.service import Service

GONE = 499
"""The status that is counted, and never sent, where the client left before its answer."""
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
SAID = {
    404: ("there is nothing at this address.", "not_found"),
    405: ("this address takes another method.", "method_not_allowed"),
}
"""What is said of statuses that come from the framework."""


def create_app(service: Service, *, key: str | None = None, hosts: frozenset[str] = LOOPBACK) -> ASGIApp:
    """The application of a service; without a key, for requests to these hosts alone."""
    engine, limits = service.engine, service.limits
    born = int(time.time())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        app.state.work = work = asyncio.create_task(service.run())
        yield
        work.cancel()
        engine.close()

    app = FastAPI(
        title=f"aptp serve {engine.name}",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
    )

    def model() -> dict[str, Any]:
        return {
            "id": engine.name,
            "object": "model",
            "created": born,
            "owned_by": "aptp",
            "revision": engine.revision,
            "size": engine.size,
            "costs": list(engine.costs),
            "defaults": {"steps": limits.steps, "guidance": limits.guidance},
            "limits": {
                "n": limits.max_count,
                "steps": limits.max_steps,
                "guidance": limits.max_guidance,
                "prompt": limits.max_prompt,
            },
        }

    schema = {"content": {"application/json": {"schema": ImageRequest.model_json_schema()}}, "required": True}

    @app.post(IMAGES, openapi_extra={"requestBody": schema}, response_model=ImageAnswer)
    async def generate(request: Request) -> Any:
        """Draw pictures of a prompt."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refusal(415, "send the request as 'Content-Type: application/json'.", "unsupported_media_type")
        order = read(await request.body(), limits, model=engine.name, size=engine.size)
        drawing = asyncio.create_task(service.draw(order))
        leaving = asyncio.ensure_future(request.receive())
        try:
            await asyncio.wait({drawing, leaving}, timeout=limits.timeout, return_when=asyncio.FIRST_COMPLETED)
            if drawing.done():
                drawn = drawing.result()
            elif leaving.done():
                return Response(status_code=GONE)
            else:
                raise Refusal(504, f"no picture was drawn within {limits.timeout:g} s.", "timeout")
        finally:
            drawing.cancel()
            leaving.cancel()
        pictures = [
            Picture(
                b64_json=base64.b64encode(picture.png).decode(),
                expert=drawn.route.expert,
                cost=drawn.route.cost,
                seed=seed,
                nsfw_content_detected=picture.flagged,
            )
            for seed, picture in zip(order.seeds, drawn.pictures, strict=True)
        ]
        return ImageAnswer(
            created=int(time.time()), data=pictures, size=engine.size, model=engine.name, revision=engine.revision
        )

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The one model that is served."""
        return {"object": "list", "data": [model()]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        """The same, by its name."""
        if name != engine.name:
            raise Refusal(404, f"there is no such model; this server has {engine.name!r}.", "model_not_found")
        return model()

    @app.head("/health/live")
    @app.get("/health/live")
    async def live() -> JSONResponse:
        """Whether the process works: a server that does not is to be started anew."""
        works = not app.state.work.done() and not engine.hangs(limits.timeout)
        return JSONResponse({"live": works}, 200 if works else 503)

    @app.head("/health/ready")
    @app.get("/health/ready")
    async def ready() -> JSONResponse:
        """Whether requests are taken."""
        return JSONResponse({"ready": not service.closing}, 503 if service.closing else 200)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Figures, in Prometheus' text form."""
        return Response(service.metrics.page(), media_type=CONTENT_TYPE_LATEST)

    html, policy = _page()

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(html, headers={"Content-Security-Policy": policy})

    @app.exception_handler(Refusal)
    async def refuse(_: Request, refusal: Refusal) -> Response:
        return refusal.response()

    @app.exception_handler(ClientDisconnect)
    async def leave(_: Request, __: ClientDisconnect) -> Response:
        """It left before its request was whole."""
        return Response(status_code=GONE)

    @app.exception_handler(HTTPException)
    async def refuse_early(_: Request, error: HTTPException) -> Response:
        message, code = SAID.get(error.status_code, ("this request cannot be read.", "invalid_request"))
        answer = Refusal(error.status_code, message, code).response()
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(Exception)
    async def fail(_: Request, error: Exception) -> Response:
        """Starlette raises the error again once this is answered, so that the server logs it."""
        return Refusal(500, "the server failed at this request; its log says why.", "internal_error").response()

    return Guard(app, key=key, hosts=hosts, revision=engine.revision, limits=limits, metrics=service.metrics)


def _page() -> tuple[str, str]:
    """The page, and a policy under which a browser runs what stands in it and nothing else."""
    html = files("aptp.serving").joinpath("page.html").read_text(encoding="utf-8")

    def digest(tag: str) -> str:
        (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    policy = (
        f"default-src 'none'; script-src {digest('script')}; style-src {digest('style')}; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return html, policy
