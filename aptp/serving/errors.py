"""Refusals: an HTTP status and one sentence, in the shape of OpenAI's errors."""

from __future__ import annotations

from starlette.responses import JSONResponse

KINDS = {429: "rate_limit_error"}
"""The `type` of an error by its status, where it is not told by whose fault it is."""


class Refusal(Exception):
    """A request that is not served.

    Args:
        status: of HTTP.
        message: one sentence for whoever sent the request; no path, no traceback.
        code: for programs.
        param: the field of the request that is wrong.
        retry_after: seconds after which it may be asked again.
    """

    def __init__(
        self, status: int, message: str, code: str, *, param: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.retry_after = status, message, code, param, retry_after

    def response(self) -> JSONResponse:
        """The answer that says so."""
        kind = KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse({"error": error}, self.status, headers)
