"""The app: a table of endpoints, hot paths straight into the spine, the rest (models, health, metrics) on Starlette."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sidecar import answer, browser, config as configuration, exchange, refusals, routing
from sidecar.asgi import AsgiClient
from sidecar.cache import Cache, configured
from sidecar.clock import now
from sidecar.config import Config
from sidecar.errors import MethodNotAllowed, Overloaded, SidecarError, UnknownModel, UnknownPath
from sidecar.ledger import Ledger
from sidecar.limits import Limits
from sidecar.log import LogWriter
from sidecar.memory import Pressure
from sidecar.pool import Pool
from sidecar.refusals import refuse, send_error, wrong_method
from sidecar.request import ANONYMOUS, Asker, Asking, identify
from sidecar.types import Endpoint, Headers, Receive, Scope, Send
from sidecar.wire import body

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
_DIRECT: Final = {path.encode(): endpoint for path, endpoint in ENDPOINTS.items()}
_AZURE: Final = "/openai/deployments/"  # and as Azure has them, the model in the path
_AZURE_ROWS: Final = tuple(ENDPOINTS[path] for path, dialect in _ROWS if dialect in _OPENAI)  # the longest suffix first
_POST: Final = (b"allow", b"POST")


class Cycle(exchange.Direct, Protocol):
    """A request as our own server offers it."""

    method: str
    path: bytes
    tcp: bool  # it came by a port
    loop: asyncio.AbstractEventLoop


class Sidecar:
    """The ASGI app. Serve it, mount it, or wrap it; give it a `Config`, a path, or nothing for the environment's keys.

    `guard`: refuse what a browser on the same machine could send (see browser.py): for a listener of the sidecar's own.
    Raises ConfigError when a path or the environment does not make a configuration.

    It serves one event loop at a time. Closed, or called on another loop, it begins anew with no connections.
    """

    def __init__(self, config: Config | str | os.PathLike[str] | None = None, *, guard: bool = False) -> None:
        self._pool = Pool(configuration.proxies())
        self._loop: asyncio.AbstractEventLoop | None = None  # that the pool's connections are of
        self._limits = Limits()
        self._ledger = Ledger()
        self._duty = exchange.Duty()
        self._ledger.open = False  # until open_log
        self._cache: Cache | None = None
        found = _loaded(config)
        self._store = exchange.share(found, self._limits, self._ledger.note)
        self._spine = self._build(found)
        self._guard = guard
        self._draining = False
        self._memory = Pressure(self.config.server.workers, guest=not guard)
        self._duty.room = self._memory.room
        self.on_level = self._memory.on_level  # for our own server
        self.on_level(self._relieve)
        self._relieve()
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
            exception_handlers={SidecarError: refuse, 404: _unknown_path, 405: wrong_method},
        )
        self._cold.router.redirect_slashes = False  # to where a Host header says

    # -- life

    def _build(self, config: Config) -> exchange.Spine:
        limits = self._limits
        limits.queue = config.queue
        self._duty.set_budget(config.retry.budget_percent, config.retry.budget_minimum)
        self._cache = configured(config, self._store, self._cache)
        routes = routing.build(config)
        return exchange.Spine(
            config=config,
            routes=routes,
            callers=exchange.askers_of(config.callers, limits),
            anonymous=Asker(ANONYMOUS, limits.counter("caller:", None, None)),
            providers={
                name: limits.counter(f"provider:{name}", up.requests_per_minute, up.concurrency, up.tokens)
                for name, up in routes.upstreams.items()
            },
            models=exchange.limits_of(config.models, limits),
            plans={},
            pool=self._pool,
            limits=limits,
            ledger=self._ledger,
            places={},
            duty=self._duty,
            max_body_bytes=config.server.max_body_bytes,
            cache=self._cache,
            stays=config.on_disconnect.policy == "drain",
        )

    @property
    def config(self) -> Config:
        return self._spine.config

    @property
    def pool(self) -> Pool:
        return self._pool

    def _reopen(self) -> None:
        """A pool for this loop: an app's lifespan may come again, as it does for each test of a test client."""
        loop = asyncio.get_running_loop()
        if self._pool.closed or self._loop is not None:
            self._pool = Pool(configuration.proxies())
            self._spine = self._build(self.config)
            self._relieve()
        self._loop = loop
        self._memory.watch.start(loop)
        if self._store is not None:
            self._store.open()

    def reload(self, config: Config) -> None:
        """Serve what comes from now on under another configuration; what is under way finishes under its own."""
        self._spine = self._build(config)
        self._relieve()

    def _relieve(self, _: int = 0) -> None:
        """Let the cache have its share of memory, or what of it there is room for."""
        if self._cache is not None:
            most = self._memory.share(self.config.cache.memory_percent, self.config.cache.max_bytes)
            self._cache.resize(self._memory.give_way(self._cache.held, most))

    def drain(self) -> None:
        """Say at /readyz that no more work should be sent here."""
        self._draining = True

    def open_log(self) -> None:
        """Write the access log where the configuration says. Called by `sidecar serve`; a host app has its own."""
        self._ledger.open = True
        self._log = LogWriter(self._ledger.drain, self.config.log.file)
        if self._store is not None:
            self._store.log_opened()

    def note(self, event: Mapping[str, Any]) -> None:
        """One structured line for the log: what the server has to say of its peers."""
        self._ledger.note(dict(event))

    async def aclose(self) -> None:
        """Close every connection to providers, and the log."""
        for flight in tuple(self._duty.flights.values()):  # those that nobody follows would go on
            flight.task.cancel()
        self._memory.watch.stop()
        await self._pool.aclose()
        if self._store is not None:
            await self._store.aclose()
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
        if scope["type"] != "http":
            return await self._other(scope["type"], receive, send)
        if self._loop is not asyncio.get_running_loop() or self._pool.closed:
            self._reopen()
        path: str = scope["path"]
        if root := scope.get("root_path"):
            path = below(path, root)
            if not path:  # where it is mounted, without a slash
                path, scope = "/", {**scope, "path": f"{root}/"}
        endpoint = ENDPOINTS.get(path) or _azure(path)
        if self._guard:
            guarded = await self._guarded(scope, send, path, hot=endpoint is not None)
            if guarded is None:
                return None
            send = guarded
        if endpoint is None:
            return await self._cold(scope, receive, send)
        if scope["method"] != "POST":
            return await send_error(MethodNotAllowed(f"{path} takes POST"), scope, path, send, _POST)
        if self._memory.shedding:
            return await self._shed(scope, path, endpoint, send)
        client = AsgiClient(scope, receive, send)
        return await client.serve(scope, exchange.run(self._spine, endpoint, client))

    async def _shed(self, scope: Scope, path: str, endpoint: Endpoint, send: Send) -> None:
        error = Overloaded("there is no memory for another request; ask again", retry_after=1.0)
        record = refusals.record_of(error, endpoint.path, now())
        self._ledger.record(record)
        await send_error(error, scope, path, send, record=record)

    def again(self, client: Cycle, data: bytes) -> exchange.Lane | exchange.Over | Coroutine[Any, Any, None] | None:
        """Offered each request whose head has come before, with its body: what `direct` asks of it holds still."""
        asking: Asking | None = client.notes.get("asking")
        spine = self._spine
        if asking is None or asking.spine is not spine or self._pool.closed:
            return None
        return exchange.take(spine, asking, client, data)

    def direct(self, client: Cycle) -> Coroutine[Any, Any, None] | None:
        """Offered each request by our own server, before it builds a scope: those of the hot paths need none."""
        endpoint = _DIRECT.get(client.path)
        if endpoint is None or client.method != "POST" or self._pool.closed or self._loop is not client.loop:
            return None
        if self._guard:
            if b"origin" in client.index:
                return None
            if not self._spine.callers:
                allowed = self.config.server.allow_origins
                if browser.refusal(client.headers, allowed=allowed, tcp=client.tcp, hot=True) is not None:
                    return None
        return exchange.run(self._spine, endpoint, client)

    async def _other(self, kind: str, receive: Receive, send: Send) -> None:
        if kind == "lifespan":
            await self._lifespan(receive, send)
        elif kind == "websocket":  # refused before it is accepted: the server answers the handshake with 403
            with contextlib.suppress(OSError):
                await receive()
                await send({"type": "websocket.close", "code": 1000})
        else:
            raise RuntimeError(f"the sidecar serves http, not {kind}")  # what ASGI asks of an app

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                if self._store is not None:
                    self._store.open()
                    await self._store.ready()
                await send({"type": "lifespan.startup.complete"})
            else:
                await self.aclose()
                return await send({"type": "lifespan.shutdown.complete"})

    async def _guarded(self, scope: Scope, send: Send, path: str, *, hot: bool) -> Send | None:
        """The send to answer with, or None when the guard against browsers has answered."""
        headers: Headers = scope["headers"]
        allowed = self.config.server.allow_origins
        preflight = browser.is_preflight(scope["method"], headers)
        if not self._spine.callers:  # a key is more than any page could know
            server = scope.get("server")
            tcp = server is not None and server[1] is not None
            refused = browser.refusal(headers, allowed=allowed, tcp=tcp, hot=hot and not preflight)
            if refused is not None:
                await send_error(refused, scope, path, send)
                return None
        origin = browser.leave(headers, allowed)
        if origin is None:
            return send
        if preflight:
            await browser.answer_preflight(send, headers, origin)
            return None
        return browser.sharing(send, origin)

    # -- cold routes

    async def _root(self, request: Request) -> Response:
        return _json({"name": "sidecar", "models": "/v1/models", "status": "/status", "metrics": "/metrics"})

    async def _livez(self, request: Request) -> Response:
        return Response(b"ok\n", media_type="text/plain")

    async def _readyz(self, request: Request) -> Response:
        if self._draining:
            return Response(b"draining\n", status_code=503, media_type="text/plain", headers={"retry-after": "1"})
        if self._memory.shedding:
            return Response(b"overloaded\n", status_code=503, media_type="text/plain", headers={"retry-after": "1"})
        return Response(b"ok\n", media_type="text/plain")

    async def _metrics(self, request: Request) -> Response:
        more = b"".join(each.metrics() for each in (self._memory, self._store, self._cache) if each is not None)
        return Response(self._ledger.metrics() + more, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _status(self, request: Request) -> Response:
        identify(self._spine.callers, request.scope["headers"], self._spine.anonymous)
        return _json(
            {
                "draining": self._draining,
                "providers": self._pool.stats(),
                "limits": self._limits.stats(),
                "health": self._health(),
                "memory": self._memory.stats(),
                "cache": {"state": "off"} if self._cache is None else {"state": "on", **self._cache.stats()},
                "requests": self._ledger.stats(),
                **({} if self._store is None else {"store": self._store.stats()}),
            }
        )

    def _health(self) -> list[dict[str, object]]:
        """Of providers and targets; where there are several callers, of no name that only one of them has asked for."""
        rows = self._duty.stats()
        if not self._spine.callers:
            return rows
        named = set(routing.models(self._spine.routes))
        return [row for row in rows if row.get("target", "") in named or "provider" in row]

    async def _models(self, request: Request) -> Response:
        return _json(answer.models(self._visible(request), anthropic="anthropic-version" in request.headers))

    async def _model(self, request: Request) -> Response:
        wanted = request.path_params["model"]
        if wanted not in self._visible(request):
            raise UnknownModel(
                f"the model {wanted!r} is not configured here; GET /v1/models lists what is", param="model"
            )
        return _json(answer.model(wanted, anthropic="anthropic-version" in request.headers))

    def _visible(self, request: Request) -> list[str]:
        caller, _ = identify(self._spine.callers, request.scope["headers"], self._spine.anonymous)
        names = routing.models(self._spine.routes)
        return [name for name in names if not caller.models or routing.allowed(caller, name)]


def _loaded(config: Config | str | os.PathLike[str] | None) -> Config:
    return config if isinstance(config, Config) else configuration.load(None if config is None else Path(config))


def below(path: str, root: str) -> str:
    """The path as an app mounted at the root path sees it."""
    return path[len(root) :] if path.startswith(root) and path[len(root) : len(root) + 1] in ("", "/") else path


def _azure(path: str) -> Endpoint | None:
    """`/openai/deployments/MODEL/chat/completions`; a model may have slashes of its own (`provider/model`)."""
    if not path.startswith(_AZURE):
        return None
    for row in _AZURE_ROWS:
        model = path[len(_AZURE) :].removesuffix(row.path.removeprefix("/v1"))
        if model and len(_AZURE) + len(model) < len(path):
            return Endpoint(path=row.path, dialect=row.dialect, model=model)
    return None


def _json(value: object) -> Response:
    return Response(body.encode(value), media_type="application/json", headers={"cache-control": "private, no-store"})


async def _unknown_path(request: Request, error: Exception) -> Response:
    path = request.scope["path"]
    return await refuse(request, UnknownPath(f"nothing is served at {path}; the endpoints are {', '.join(ENDPOINTS)}"))
