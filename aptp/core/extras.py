"""Packages that only some work needs, and that come with an extra of aptp's own."""

from __future__ import annotations

from importlib.util import find_spec

from aptp.core.errors import RequestError

PACKAGES = {
    "onnx": {"onnx": "onnx", "onnxscript": "onnxscript"},
    "serve": {"fastapi": "fastapi", "uvicorn": "uvicorn", "prometheus_client": "prometheus-client"},
}
"""Of an extra: its modules, and the packages that bring them."""


def check_extra(what: str, extra: str) -> None:
    """Raise `RequestError` where a package of an extra is not installed; `what` needs it. Imports none of them."""
    if missing := [package for module, package in PACKAGES[extra].items() if find_spec(module) is None]:
        raise RequestError(f"{what} needs {', '.join(missing)}, not installed; pip install 'aptp[{extra}]'.")
