"""The proxy that anyone would write first: uvicorn, Starlette and httpx, no keys, no limits; a rival in compare.py."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

LEFT_OUT = {"host", "content-length", "connection", "transfer-encoding"}
LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=256)


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with httpx.AsyncClient(base_url=os.environ["UPSTREAM"], limits=LIMITS, timeout=60) as app.state.client:
        yield


async def proxy(request: Request) -> Response:
    client: httpx.AsyncClient = request.app.state.client
    headers = {name: value for name, value in request.headers.items() if name not in LEFT_OUT}
    sent = client.build_request("POST", request.url.path, headers=headers, content=await request.body())
    answer = await client.send(sent, stream=True)
    kept = {name: value for name, value in answer.headers.items() if name not in LEFT_OUT}
    if "text/event-stream" not in answer.headers.get("content-type", ""):
        body = await answer.aread()
        await answer.aclose()
        return Response(body, answer.status_code, kept)

    async def chunks() -> AsyncIterator[bytes]:
        try:
            async for chunk in answer.aiter_raw():
                yield chunk
        finally:
            await answer.aclose()

    return StreamingResponse(chunks(), answer.status_code, kept)


app = Starlette(routes=[Route("/v1/{path:path}", proxy, methods=["POST"])], lifespan=lifespan)
