"""The configuration: one TOML file, one frozen struct, one module that reads it. Every default stands here and only here."""

from __future__ import annotations

import msgspec

from sidecar.secret import Secret


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file: closed, frozen, every option with a default."""


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """A key by reference. `source` is what the file says ("env:NAME", "file:/path", "caller", "sha256:...", "inline")."""

    source: str
    secret: Secret | None = None  # None: the variable is not set, or the key is the caller's own, or only its digest is known
    digest: bytes | None = None  # SHA-256, for callers' keys
    missing: str | None = None  # why there is no secret, in words for a person


class Timeouts(Table):
    connect_seconds: float = 5.0
    first_byte_seconds: float = 300.0
    idle_seconds: float = 120.0
    total_seconds: float = 1800.0


class Pool(Table):
    max_connections: int = 1000
    keepalive_seconds: float = 30.0
    max_age_seconds: float = 600.0


class Limits(Table):
    requests_per_minute: int | None = None
    concurrency: int | None = None


class Queue(Table):
    length: int | None = None  # waiting requests per limit; None = as many as the limit
    wait_seconds: float = 3.0


class Server(Table):
    listen: tuple[str, ...] = ("127.0.0.1:4000",)
    socket_mode: int = 0o660
    workers: int = 1
    tls_cert: str | None = None
    tls_key: str | None = None
    allow_origins: tuple[str, ...] = ()
    max_connections: int | None = None  # None = min(4096, 0.45 of the open-files limit)
    max_request_line_bytes: int = 8192
    max_header_bytes: int = 65536
    max_headers: int = 100
    max_body_bytes: int = 32 * 1024 * 1024
    header_seconds: float = 10.0
    body_idle_seconds: float = 15.0
    body_seconds: float = 120.0
    keepalive_seconds: float = 75.0
    send_stall_seconds: float = 60.0
    lame_duck_seconds: float = 3.0
    drain_seconds: float = 25.0


class Provider(Table):
    kind: str | None = None  # None = the table's name
    base_url: str | None = None  # None = the row's
    api_key: Key | None = None  # None = the row's environment variable, where the row needs a key
    headers: dict[str, str] = {}
    drop: tuple[str, ...] = ()
    rename: dict[str, str] = {}
    tls_ca: str | None = None
    tls_verify: bool = True
    proxy: str | None = None
    timeouts: Timeouts = Timeouts()
    pool: Pool = Pool()
    limits: Limits = Limits()


class Model(Table):
    targets: tuple[str, ...]
    policy: str = "failover"


class Caller(Table):
    key: Key
    models: tuple[str, ...] = ()
    requests_per_minute: int | None = None
    concurrency: int | None = None


class Log(Table):
    level: str = "info"
    format: str = "json"
    file: str = "-"  # "-" = standard error


class Config(Table):
    """The whole file. Build it with `load`, or directly (in tests, in code)."""

    server: Server = Server()
    providers: dict[str, Provider] = {}
    models: dict[str, Model] = {}
    callers: dict[str, Caller] = {}
    timeouts: Timeouts = Timeouts()
    pool: Pool = Pool()
    queue: Queue = Queue()
    log: Log = Log()
