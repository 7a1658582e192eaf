"""Keys and prompts are planted everywhere, every kind of error is forced, and what comes out is searched for them."""

from __future__ import annotations

import base64
import hashlib
import signal
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import pytest

from tests.commands.process import Process, started
from tests.config.files import written

KEYS = {
    name: f"canary-{name}-7c1f0e5d"
    for name in ("simulated", "header", "echoed", "proxy", "query", "caller", "own", "wrong")
}
PROMPT = "canary-prompt-7c1f0e5d"

FAULTS = [
    *("400", "401", "402", "403", "404", "408", "413", "422", "429", "498", "500", "502", "503", "504", "529"),
    *("close", "refuse", "reset", "reset_after:1", "cut_after:1", "truncated", "malformed", "error_in_stream"),
    *("html", "huge_headers", "injected", "length_long", "length_short", "redirect", "no_done", "quota", "split_utf8"),
]
CREDENTIALS = [
    {"authorization": "Bearer {}"},
    {"authorization": "Basic {}"},
    {"x-api-key": "{}"},
    {"api-key": "{}"},
    {"x-goog-api-key": "{}"},
]


class Echo(socketserver.StreamRequestHandler):
    """The worst of providers: its error is all that it was sent, key included."""

    def handle(self) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            line = self.rfile.readline(65536)
            if not line:
                return
            head += line
        body = b'{"error":{"message":' + msgspec.json.encode(head.decode("latin-1")) + b"}}"
        self.wfile.write(b"HTTP/1.1 401 No\r\ncontent-type: application/json\r\nconnection: close\r\n")
        self.wfile.write(b"content-length: %d\r\n\r\n%b" % (len(body), body))


@pytest.fixture
def echo() -> Iterator[int]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def text(simulator: str, echo: int) -> str:
    table = '\n[providers.{}]\nkind = "openai-compatible"\nbase_url = "{}"\n'
    return (
        '[server]\nlisten = "127.0.0.1:0"\nlame_duck_seconds = 0\n[log]\nfile = "access.log"\n'
        f'[callers.web]\nkey = "sha256:{hashlib.sha256(KEYS["caller"].encode()).hexdigest()}"\n'
        "[timeouts]\nconnect_seconds = 2\nfirst_byte_seconds = 2\nidle_seconds = 1\n"
        + table.format("simulated", simulator)
        + f'api_key = "{KEYS["simulated"]}"\nheaders.x-secret = "{KEYS["header"]}"\n'
        + table.format("echo", f"http://127.0.0.1:{echo}/v1")
        + f'api_key = "{KEYS["echoed"]}"\n'
        + table.format("dead", f"http://127.0.0.1:1/v1?key={KEYS['query']}")
        + f'api_key = "{KEYS["simulated"]}"\n'
        + table.format("tls", f"https://127.0.0.1:{echo}/v1")
        + f'api_key = "{KEYS["simulated"]}"\n'
        + table.format("proxied", "https://provider.invalid/v1")
        + f'api_key = "{KEYS["simulated"]}"\nproxy = "http://user:{KEYS["proxy"]}@127.0.0.1:{echo}"\n'
        + table.format("unproxied", "https://provider.invalid/v1")
        + f'proxy = "http://user:{KEYS["proxy"]}@127.0.0.1:1"\n'
    )


class Client:
    """Asks, and keeps whatever came back."""

    def __init__(self, url: str) -> None:
        self.http = httpx.Client(base_url=url, trust_env=False, timeout=10)
        self.statuses: list[int] = []
        self.seen: list[bytes] = []

    def ask(self, method: str, path: str, *, headers: dict[str, str], content: bytes | None = None) -> None:
        sent = {"content-type": "application/json", "authorization": f"Bearer {KEYS['caller']}", **headers}
        if any(name in headers for name in ("x-api-key", "api-key", "x-goog-api-key")):
            del sent["authorization"]
        try:
            with self.http.stream(method, path, headers=sent, content=content) as answer:
                self.statuses.append(answer.status_code)
                self.seen.append(repr(answer.headers.raw).encode())
                for data in answer.iter_raw():
                    self.seen.append(data)
        except httpx.RemoteProtocolError as error:  # a stream that was cut, which is as it should be
            self.seen.append(repr(error).encode())


def body(model: str, *, stream: bool = False) -> bytes:
    return msgspec.json.encode(
        {"model": model, "stream": stream, "messages": [{"role": "user", "content": PROMPT}], "user": PROMPT}
    )


def force_everything(client: Client) -> None:
    chat = "/v1/chat/completions"
    for fault in FAULTS:
        for stream in (False, True):
            client.ask("POST", chat, headers={"x-sim-fault": fault}, content=body("simulated/sim-large", stream=stream))
    for provider in ("echo", "dead", "tls", "proxied", "unproxied", "absent"):
        for path in (chat, "/v1/messages"):
            client.ask("POST", path, headers={}, content=body(f"{provider}/m"))
    for form in CREDENTIALS:
        wrong = {name: value.format(KEYS["wrong"]) for name, value in form.items()}
        client.ask("POST", chat, headers=wrong, content=body("simulated/sim-large"))
    for content in (
        b'{"' + PROMPT.encode(),
        b'["' + PROMPT.encode() + b'"]',
        b'{"messages":"' + PROMPT.encode() + b'"}',
        b'{"model":3,"x":"' + PROMPT.encode() + b'"}',
    ):
        client.ask("POST", chat, headers={}, content=content)
    client.ask("POST", f"/v1/nothing?key={KEYS['wrong']}", headers={}, content=b"{}")
    client.ask("GET", f"{chat}?key={KEYS['wrong']}", headers={})
    client.ask("POST", chat, headers={"x-sidecar-timeout-ms": KEYS["wrong"]}, content=body("simulated/sim-large"))
    for path in ("/metrics", "/status", "/v1/models", "/v1/models/absent", "/"):
        client.ask("GET", path, headers={})


def reload_badly(process: Process, file: Path) -> None:
    good = file.read_text()
    for bad in (f'api_key = "{KEYS["own"]}\n', f'apikey = "{KEYS["own"]}"\n', f'api_key = "env:{KEYS["own"]}"\n'):
        written(file, good + bad)
        process.child.send_signal(signal.SIGHUP)


def test_nothing_that_comes_out_has_a_key_or_a_prompt_in_it(tmp_path: Path, echo: int) -> None:
    with started("simulate", "--port", "0", folder=tmp_path) as provider:
        simulator = provider.line("simulated provider at ").split()[-1]
        file = written(tmp_path / "sidecar.toml", text(simulator, echo))
        with started(folder=tmp_path) as process:
            client = Client(f"http://{process.line('sidecar listens on ').split()[3]}")
            with client.http:
                force_everything(client)
                reload_badly(process, file)
                client.ask("GET", "/v1/models", headers={})
            assert process.end() == 0
        provider.end()
    log = (tmp_path / "access.log").read_bytes()
    assert {200, 400, 401, 404, 405, 429, 502, 504} <= set(client.statuses)
    assert log.count(b'"event":"exchange"') > 2 * len(FAULTS)
    out = b"\n".join([log, *client.seen, "".join(process.told).encode()])
    planted = [*KEYS.values(), PROMPT, base64.b64encode(f"user:{KEYS['proxy']}".encode()).decode()]
    assert [each for each in planted if each.encode() in out] == []
    for line in log.splitlines():
        msgspec.json.decode(line, type=dict[str, object])


@pytest.mark.parametrize(
    ("option", "key"),
    [('api_key = "caller"', KEYS["caller"]), (f'headers.x-secret = "{KEYS["header"]}"', KEYS["header"])],
)
def test_whatever_credential_a_provider_repeats_is_taken_out(tmp_path: Path, echo: int, option: str, key: str) -> None:
    written(
        tmp_path / "sidecar.toml",
        '[server]\nlisten = "127.0.0.1:0"\nlame_duck_seconds = 0\n[providers.echo]\nkind = "openai-compatible"\n'
        f'base_url = "http://127.0.0.1:{echo}/v1"\n{option}\n',
    )
    with started(folder=tmp_path) as process:
        client = Client(f"http://{process.line('sidecar listens on ').split()[3]}")
        with client.http:
            client.ask("POST", "/v1/chat/completions", headers={}, content=body("echo/m"))
        assert process.end() == 0
    assert client.statuses == [401]
    assert key.encode() not in b"".join(client.seen)
