"""The app: a table of endpoints, hot paths straight into the spine, the rest (models, health, metrics) on Starlette."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sidecar import answer, config as configuration, exchange, routing
from sidecar.config import Config
from sidecar.dialects import DIALECTS
from sidecar.errors import (
    MediaTypeUnsupported,
    MethodNotAllowed,
    OriginForbidden,
    SidecarError,
    UnknownModel,
    UnknownPath,
)
from sidecar.ledger import Ledger
from sidecar.limits import Limits
from sidecar.log import LogWriter
from sidecar.pool import Pool
from sidecar.request import identify
from sidecar.types import Caller, Endpoint, Headers, Receive, Record, Scope, Send
from sidecar.wire import body, headers as rules

_ROWS: Final = (
    ("/v1/chat/completions", "chat"),
    ("/v1/completions", "completions"),
    ("/v1/embeddings", "embeddings"),
    ("/v1/messages", "messages"),
    ("/v1/messages/count_tokens", "count_tokens"),
)
ENDPOINTS: Final[dict[str, Endpoint]] = {path: Endpoint(path=path, dialect=dialect) for path, dialect in _ROWS}
_OPENAI: Final = ("chat", "completions", "embeddings")
ENDPOINTS.update(  # OpenAI's are served without /v1 too: both are in use as a base URL
    {path.removeprefix("/v1"): Endpoint(path=path, dialect=dialect) for path, dialect in _ROWS if dialect in _OPENAI}
)
_AZURE: Final = "/openai/deployments/"  # and as Azure has them, the model in the path
_LOOPBACK: Final = ("localhost", "[::1]", "::1")


class Sidecar:
    """The ASGI app. Serve it, mount it, or wrap it; give it a `Config`, a path, or nothing for the environment's keys.

    `guard`: refuse what a browser on the same machine could send (for a loopback listener without callers' keys).
    Raises ConfigError when a path or the environment does not make a configuration.
    """

    def __init__(self, config: Config | str | os.PathLike[str] | None = None, *, guard: bool = False) -> None:
        self._pool = Pool(configuration.proxies())
        self._limits = Limits()
        self._ledger = Ledger()
        self._spine = self._build(_loaded(config))
        self._guard = guard
        self._draining = False
        self._log: LogWriter | None = None
        self._cold = Starlette(
            routes=[
                Route("/", self._root, methods=["GET", "HEAD"]),
                Route("/v1/models", self._models, methods=["GET"]),
                Route("/models", self._models, methods=["GET"]),
                Route("/v1/models/{model:path}", self._model, methods=["GET"]),
                Route("/models/{model:path}", self._model, methods=["GET"]),
                Route("/livez", self._livez, methods=["GET"]),
                Route("/readyz", self._readyz, methods=["GET"]),
                Route("/startupz", self._livez, methods=["GET"]),
                Route("/metrics", self._metrics, methods=["GET"]),
                Route("/status", self._status, methods=["GET"]),
            ],
            exception_handlers={SidecarError: _refuse, 404: _unknown_path, 405: _wrong_method},
        )

    # -- life

    def _build(self, config: Config) -> exchange.Spine:
        self._limits.queue = config.queue
        return exchange.Spine(
            config=config,
            routes=routing.build(config),
            callers={
                table.key.digest: Caller(
                    name=name,
                    models=table.models,
                    requests_per_minute=table.requests_per_minute,
                    concurrency=table.concurrency,
                )
                for name, table in config.callers.items()
                if table.key.digest is not None
            },
            pool=self._pool,
            limits=self._limits,
            ledger=self._ledger,
        )

    @property
    def config(self) -> Config:
        return self._spine.config

    @property
    def pool(self) -> Pool:
        return self._pool

    def reload(self, config: Config) -> None:
        """Serve what comes from now on under another configuration; what is under way finishes under its own."""
        self._spine = self._build(config)

    def drain(self) -> None:
        """Say at /readyz that no more work should be sent here."""
        self._draining = True

    def open_log(self) -> None:
        """Write the access log where the configuration says. Called by `sidecar serve`; a host app has its own."""
        self._log = LogWriter(self._ledger.drain, self.config.log.file)

    def note(self, event: Mapping[str, Any]) -> None:
        """One structured line for the log: what the server has to say of its peers."""
        self._ledger.note(dict(event))

    async def aclose(self) -> None:
        """Close every connection to providers, and the log."""
        await self._pool.aclose()
        if self._log is not None:
            self._log.close()
            self._log = None

    async def __aenter__(self) -> Sidecar:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<Sidecar {len(self.config.providers)} providers, {self._pool!r}>"

    # -- ASGI

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "lifespan":
            return await self._lifespan(receive, send)
        if kind != "http":
            return await _close_websocket(receive, send)
        path: str = scope["path"]
        root: str = scope.get("root_path", "")
        if root and path.startswith(root):
            path = path[len(root) :]
        endpoint = ENDPOINTS.get(path) or _azure(path)
        if self._guard and (refused := self._browser(scope, hot=endpoint is not None)) is not None:
            return await _answer(refused, scope, path, send)
        if endpoint is None:
            return await self._cold(scope, receive, send)
        if scope["method"] != "POST":
            return await _answer(MethodNotAllowed(f"{path} takes POST"), scope, path, send)
        return await exchange.run(self._spine, endpoint, scope, receive, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            else:
                await self.aclose()
                return await send({"type": "lifespan.shutdown.complete"})

    def _browser(self, scope: Scope, *, hot: bool) -> SidecarError | None:
        """Why a request may be a web page's and not a program's: with no key to ask for, that is refused."""
        if self._spine.callers:
            return None
        headers: Headers = scope["headers"]
        origin = rules.get(headers, b"origin")
        if origin is not None and origin.decode("latin-1") not in self.config.server.allow_origins:
            return OriginForbidden("a web page may not use this sidecar unless [server] allow_origins names its origin")
        server = scope.get("server")
        if server is not None and server[1] is not None:  # not a unix socket
            host = (rules.get(headers, b"host") or b"").decode("latin-1").lower()
            name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
            if name and not (name in _LOOPBACK or name.startswith("127.") or name.endswith(".localhost")):
                return OriginForbidden(f"the Host {name!r} is not this machine's loopback")
        if hot and not _is_json(rules.get(headers, b"content-type")):
            return MediaTypeUnsupported("the body must be declared as JSON: send 'content-type: application/json'")
        return None

    # -- cold routes

    async def _root(self, request: Request) -> Response:
        return _json({"name": "sidecar", "models": "/v1/models", "status": "/status", "metrics": "/metrics"})

    async def _livez(self, request: Request) -> Response:
        return Response(b"ok\n", media_type="text/plain")

    async def _readyz(self, request: Request) -> Response:
        if self._draining:
            return Response(b"draining\n", status_code=503, media_type="text/plain", headers={"retry-after": "1"})
        return Response(b"ok\n", media_type="text/plain")

    async def _metrics(self, request: Request) -> Response:
        return Response(self._ledger.metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _status(self, request: Request) -> Response:
        identify(self._spine.callers, request.scope["headers"])
        return _json(
            {
                "draining": self._draining,
                "providers": self._pool.stats(),
                "limits": self._limits.stats(),
                "requests": self._ledger.stats(),
            }
        )

    async def _models(self, request: Request) -> Response:
        return _json(_list(self._visible(request), anthropic="anthropic-version" in request.headers))

    async def _model(self, request: Request) -> Response:
        wanted = request.path_params["model"]
        if wanted not in self._visible(request):
            raise UnknownModel(
                f"the model {wanted!r} is not configured here; GET /v1/models lists what is", param="model"
            )
        return _json(_entry(wanted, anthropic="anthropic-version" in request.headers))

    def _visible(self, request: Request) -> list[str]:
        caller = identify(self._spine.callers, request.scope["headers"])
        names = routing.models(self._spine.routes)
        return [name for name in names if not caller.models or routing.allowed(caller, name)]


def _loaded(config: Config | str | os.PathLike[str] | None) -> Config:
    return config if isinstance(config, Config) else configuration.load(None if config is None else Path(config))


def _azure(path: str) -> Endpoint | None:
    if not path.startswith(_AZURE):
        return None
    model, _, operation = path[len(_AZURE) :].partition("/")
    row = ENDPOINTS.get("/v1/" + operation)
    if row is None or not model or row.dialect not in _OPENAI:
        return None
    return Endpoint(path=row.path, dialect=row.dialect, model=model)


def _is_json(kind: bytes | None) -> bool:
    media = (kind or b"").partition(b";")[0].strip().lower()
    return media == b"application/json" or (media.startswith(b"application/") and media.endswith(b"+json"))


def _json(value: object) -> Response:
    return Response(body.encode(value), media_type="application/json", headers={"cache-control": "private, no-store"})


def _entry(name: str, *, anthropic: bool) -> dict[str, object]:
    if anthropic:
        return {"type": "model", "id": name, "display_name": name, "created_at": "1970-01-01T00:00:00Z"}
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": name.partition("/")[0] if "/" in name else "sidecar",
    }


def _list(names: list[str], *, anthropic: bool) -> dict[str, object]:
    data = [_entry(name, anthropic=anthropic) for name in names]
    if anthropic:
        ends = {"first_id": names[0] if names else None, "last_id": names[-1] if names else None}
        return {"data": data, "has_more": False, **ends}
    return {"object": "list", "data": data}


# -- errors of cold routes, in the same words as the spine's


def _worded(error: SidecarError, path: str, headers: Headers) -> tuple[Headers, bytes]:
    speaks = "messages" if "/messages" in path or rules.get(headers, b"anthropic-version") else "chat"
    return answer.refusal(error, DIALECTS[speaks], Record(request_id=exchange.request_id(), endpoint=path))


async def _answer(error: SidecarError, scope: Scope, path: str, send: Send) -> None:
    headers, data = _worded(error, path, scope["headers"])
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": data})


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, SidecarError)
    headers, data = _worded(error, request.url.path, request.scope["headers"])
    response = Response(data, status_code=error.status)
    response.raw_headers = list(headers)
    return response


async def _unknown_path(request: Request, error: Exception) -> Response:
    path = request.url.path
    return await _refuse(request, UnknownPath(f"nothing is served at {path}; the endpoints are {', '.join(ENDPOINTS)}"))


async def _wrong_method(request: Request, error: Exception) -> Response:
    return await _refuse(request, MethodNotAllowed(f"{request.url.path} does not take {request.method}"))


async def _close_websocket(receive: Receive, send: Send) -> None:
    with contextlib.suppress(OSError):
        await receive()
        await send({"type": "websocket.close", "code": 1000})
