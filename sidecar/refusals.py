"""Errors outside of the spine (cold routes, what is refused before it begins), in the same words as the spine's."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from sidecar import answer
from sidecar.dialects import DIALECTS
from sidecar.errors import MethodNotAllowed, SidecarError
from sidecar.exchange import request_id
from sidecar.types import Headers, Record, Scope, Send
from sidecar.wire import headers as rules


def record_of(error: SidecarError, path: str, time: float) -> Record:
    """Of a request that is refused at this time (of the monotonic clock), before anything of it is read."""
    return Record(time, request_id=request_id(), endpoint=path, status=error.status, error=error.code)


async def send_error(
    error: SidecarError, scope: Scope, path: str, send: Send, *extra: tuple[bytes, bytes], record: Record | None = None
) -> None:
    """Answer in ASGI. `path`: below where the app is mounted. `record`: that this is told in, with its id."""
    headers, data = _worded(error, path, scope["headers"], record or Record(request_id=request_id(), endpoint=path))
    await send({"type": "http.response.start", "status": error.status, "headers": [*headers, *extra]})
    await send({"type": "http.response.body", "body": data})


async def refuse(request: Request, error: Exception) -> Response:
    """Starlette's handler of SidecarError."""
    assert isinstance(error, SidecarError)
    path = request.scope["path"]
    headers, data = _worded(error, path, request.scope["headers"], Record(request_id=request_id(), endpoint=path))
    response = Response(data, status_code=error.status)
    response.raw_headers = list(headers)
    return response


async def wrong_method(request: Request, error: Exception) -> Response:
    """Starlette's handler of 405."""
    response = await refuse(request, MethodNotAllowed(f"{request.scope['path']} does not take {request.method}"))
    response.raw_headers.append((b"allow", b"GET, HEAD"))  # of every cold route
    return response


def _worded(error: SidecarError, path: str, headers: Headers, record: Record) -> tuple[Headers, bytes]:
    speaks = "messages" if "/messages" in path or rules.get(headers, b"anthropic-version") else "chat"
    told, data = answer.refusal(error, DIALECTS[speaks], record)
    return [*told, (b"content-length", b"%d" % len(data))], data
