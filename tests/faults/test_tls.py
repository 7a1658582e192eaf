"""Providers whose TLS is not as it should be: told as such, and not one byte of a request was sent (D25)."""

from __future__ import annotations

import ssl
import warnings
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.faults.peer import CLOSE, GONE, REQUEST, RST, Again, Expect, RawServer, Script
from tests.faults.stand import ask, provider, standing
from tests.faults.transcripts import BOTH, EVERY_WAY, WAYS, Way
from tests.pool.asks import serving

CHAT = WAYS["chat"]


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def roots(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("tls") / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return str(path)


def _old(context: ssl.SSLContext) -> ssl.SSLContext:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    return context


def _tables(**options: Any) -> Any:
    """Providers that are asked over TLS, at the peer's port."""

    def tables(peer: RawServer) -> Any:
        base = f"https://localhost:{peer.port}"
        return {
            "lab2": provider(peer, base_url=f"{base}/v1", **options),
            "claude2": provider(peer, "anthropic", base_url=base, **options),
        }

    return tables


@EVERY_WAY
@BOTH
async def test_good_tls_carries_every_way(authority: trustme.CA, roots: str, way: Way, stream: bool) -> None:
    good = way.stream() if stream else way.whole()
    tls = serving(authority, "localhost")
    async with standing([Again((REQUEST, good))], peer={"tls": tls}, more=_tables(tls_ca=roots)) as stand:
        for _ in range(2):
            reply = await stand.ask(ask(way, stream=stream, model=way.model.replace("/", "2/")))
            assert (reply.status, reply.ended) == (200, True)
        assert len(stand.peer.connections) == 1


@pytest.mark.parametrize("fault", ["name", "expired", "stranger", "self-signed", "old"])
@EVERY_WAY
async def test_tls_that_is_not_good(authority: trustme.CA, roots: str, fault: str, way: Way) -> None:
    issuer = trustme.CA() if fault == "stranger" else authority
    tls = serving(issuer, "other.test" if fault == "name" else "localhost", expired=fault == "expired")
    if fault == "old":
        tls = _old(tls)
    options = {} if fault == "self-signed" else {"tls_ca": roots}
    async with standing([Again((REQUEST, way.whole()))], peer={"tls": tls}, more=_tables(**options)) as stand:
        reply = await stand.ask(ask(way, stream=False, model=way.model.replace("/", "2/")))
        assert (reply.status, reply.json["error"]["code"]) == (502, "provider_tls_failed")
        assert "TLS with localhost failed" in reply.json["error"]["message"]
        assert stand.peer.received == b""


@pytest.mark.parametrize(
    "script",
    [
        [Expect(1), b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n", CLOSE],
        [Expect(1), b"220 smtp.example ESMTP\r\n", GONE],
        [Expect(1), CLOSE],
        [Expect(1), RST],
    ],
)
async def test_a_port_that_speaks_no_tls(roots: str, script: Script) -> None:
    async with standing(script, more=_tables(tls_ca=roots)) as stand:
        reply = await stand.ask(ask(CHAT, model="lab2/m"))
        assert (reply.status, reply.json["error"]["code"]) == (502, "provider_tls_failed")
        assert b"POST" not in stand.peer.received
        assert b"canary" not in stand.peer.received


async def test_the_next_target_is_asked_then(roots: str) -> None:
    script: Script = [Expect(1), b"HTTP/1.1 400 Bad Request\r\n\r\n", CLOSE]
    async with RawServer([REQUEST, CHAT.stream()]) as other:

        def more(peer: RawServer) -> Any:
            return {**_tables(tls_ca=roots)(peer), "other": provider(other)}

        async with standing(script, more=more, models={"fast": ("lab2/m", "other/m")}) as stand:
            reply = await stand.ask(ask(CHAT, model="fast"))
            assert (reply.status, reply.get(b"x-sidecar-attempts")) == (200, b"2")


async def test_a_file_of_roots_that_is_gone(tmp_path: Path) -> None:
    async with standing([], more=_tables(tls_ca=str(tmp_path / "gone.pem"))) as stand:
        reply = await stand.ask(ask(CHAT, model="lab2/m"))
        assert (reply.status, reply.json["error"]["code"]) == (502, "provider_tls_failed")
        assert stand.peer.connections == []
