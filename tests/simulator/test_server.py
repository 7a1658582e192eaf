from __future__ import annotations

import asyncio
import gc
import os
from pathlib import Path
from typing import cast

import msgspec
import pytest

from sidecar.simulator import Settings, Simulator
from sidecar.simulator.faults import Step
from sidecar.simulator.server import _BENCH_STREAM, _BENCH_UNARY, Peer
from tests.simulator.raw import CHAT, MESSAGES, ask, chunks, connected, post, split, until

STREAM = {**CHAT, "stream": True}


async def test_one_answer_is_exact() -> None:
    async with Simulator() as simulator:
        data, end = await ask(simulator, post(CHAT, ("x-sim-tokens", "3")))
    body = (
        b'{"id":"chatcmpl-00000001","created":1700000001,"model":"sim-large","object":"chat.completion","choices":'
        b'[{"index":0,"message":{"role":"assistant","content":"sidecar streams every","refusal":null},"logprobs":null,'
        b'"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":3,"total_tokens":6,'
        b'"prompt_tokens_details":{"cached_tokens":0},"completion_tokens_details":{"reasoning_tokens":0}}}'
    )
    assert end == "eof"
    assert (
        data
        == (
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-request-id: req_sim_1\r\n"
            b"x-ratelimit-limit-requests: 30000\r\nx-ratelimit-remaining-requests: 29999\r\n"
            b"x-ratelimit-reset-requests: 1s\r\nx-ratelimit-limit-tokens: 30000000\r\n"
            b"x-ratelimit-remaining-tokens: 29999000\r\nx-ratelimit-reset-tokens: 1s\r\n"
            b"content-length: %d\r\n\r\n" % len(body)
        )
        + body
    )


async def test_a_connection_is_kept_for_the_next_request() -> None:
    async with Simulator() as simulator, connected(simulator) as raw:
        raw.send(post(CHAT, close=False))
        await raw.to(b"}}")
        raw.send(post(CHAT, close=True))
        data = await raw.to_end()
        assert simulator.accepted == 1
    assert data.count(b'"id":"chatcmpl-00000001"') == data.count(b'"id":"chatcmpl-00000002"') == 1


async def test_pipelined_requests_are_answered_in_order_however_many() -> None:
    async with Simulator() as simulator, connected(simulator) as raw:
        raw.send(post(CHAT, close=False) * 1999 + post(CHAT))
        data = await raw.to_end()
    at = [data.index(b"req_sim_%d\r\n" % number) for number in range(1, 2001)]
    assert at == sorted(at)


async def test_a_request_behind_a_paced_stream_waits_for_its_end() -> None:
    async with Simulator() as simulator, connected(simulator) as raw:
        raw.send(post(STREAM, ("x-sim-rate", "500"), ("x-sim-tokens", "4"), close=False) + post(CHAT))
        data = await raw.to_end()
    first, _, second = data.partition(b"0\r\n\r\n")
    assert first.endswith(b"data: [DONE]\n\n\r\n")
    assert second.startswith(b"HTTP/1.1 200 OK\r\n")
    assert second.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize("request_", [post(CHAT).replace(b"HTTP/1.1", b"HTTP/1.0", 1), post(CHAT)])
async def test_it_closes_where_the_client_does_not_keep_alive(request_: bytes) -> None:
    async with Simulator() as simulator:
        data, end = await ask(simulator, request_)
    assert (split(data)[0], end) == (200, "eof")


async def test_head_has_no_body() -> None:
    async with Simulator() as simulator:
        data, _ = await ask(simulator, post(b"", method="HEAD"))
    assert data.startswith(b"HTTP/1.1 405 Method Not Allowed\r\n")
    assert data.endswith(b"\r\n\r\n")
    assert data.count(b"\r\n\r\n") == 1


async def test_a_chunked_body_is_kept_to_the_byte_and_100_continue_is_said() -> None:
    body = (
        b'{ "model":"a", "x":1.0, "big":123456789012345678901234567890, "e":1e400,'
        b' "messages":[{"role":"user","content":"\\u00e9"}]}'
    )
    head = (
        b"POST /v1/chat/completions?beta=1 HTTP/1.1\r\nHost: h\r\nContent-Type: application/json; charset=utf-8\r\n"
        b"Expect: 100-continue\r\nTransfer-Encoding: chunked\r\nConnection: close\r\nX-Odd: \xe9\r\n\r\n"
    )
    async with Simulator() as simulator, connected(simulator) as raw:
        raw.send(head)
        assert await raw.to(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        raw.send(b"5\r\n" + body[:5] + b"\r\n%x\r\n" % (len(body) - 5) + body[5:] + b"\r\n0\r\n\r\n")
        data = await raw.to_end()
        (seen,) = simulator.requests
    assert split(data.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n"))[0] == 200
    assert seen.body == body
    assert (seen.method, seen.path, seen.header("x-odd")) == ("POST", "/v1/chat/completions?beta=1", "é")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", 400),
        (b"NONSENSE\r\n\r\n", 501),
        (post(b"x" * 2000), 413),
    ],
)
async def test_what_is_not_http_is_refused_and_the_connection_ended(
    sent: bytes, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    async with Simulator(Settings(max_body_bytes=1000)) as simulator:
        data, end = await ask(simulator, sent)
        assert not simulator.requests
    assert data == b"HTTP/1.1 %d Bad\r\nconnection: close\r\ncontent-length: 0\r\n\r\n" % status
    assert end == "eof"
    assert capsys.readouterr().err.startswith("simulator: ")


async def test_rubbish_behind_a_paced_stream_ends_the_connection_after_it(capsys: pytest.CaptureFixture[str]) -> None:
    async with Simulator() as simulator, connected(simulator) as raw:
        raw.send(post(STREAM, ("x-sim-rate", "1000"), ("x-sim-tokens", "2"), close=False) + b"\x00\x01rubbish\r\n\r\n")
        data = await raw.to_end()
    assert data.count(b"[DONE]") == 1
    assert data.endswith(b"0\r\n\r\nHTTP/1.1 501 Bad\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
    assert "simulator: " in capsys.readouterr().err


async def test_a_flood_behind_an_answer_is_dropped() -> None:
    async with Simulator() as simulator, connected(simulator) as raw:
        raw.send(post(CHAT, ("x-sim-fault", "stall"), close=False) + b"x" * 1_100_000)
        await raw.to_end()
        await until(lambda: not simulator.connections)


# -- what is kept of requests


async def test_times_tell_what_became_of_a_request() -> None:
    async with Simulator() as simulator:
        await ask(simulator, post(STREAM, ("x-sim-latency-ms", "20"), ("x-sim-rate", "200"), ("x-sim-tokens", "3")))
        (seen,) = simulator.requests
    assert seen.answered_at is not None
    assert seen.finished_at is not None
    assert seen.cancelled_at is None
    assert seen.answered_at - seen.began >= 0.018  # uvloop's timers are of whole milliseconds
    assert seen.finished_at - seen.answered_at >= 0.018  # five more events, 5 ms apart


@pytest.mark.parametrize("fault", ["stall", "stall_after:2", ""])
async def test_a_client_that_leaves_is_noted(fault: str) -> None:
    async with Simulator() as simulator:
        async with connected(simulator) as raw:
            raw.send(post(STREAM, ("x-sim-fault", fault), ("x-sim-rate", "1"), close=False))
            await until(lambda: bool(simulator.requests))
            if fault != "stall":
                await raw.to(b"data: ")
        await until(lambda: not simulator.connections)
        (seen,) = simulator.requests
    assert seen.cancelled_at is not None
    assert seen.finished_at is None
    assert (seen.answered_at is None) == (fault == "stall")


@pytest.mark.parametrize("fault", ["reset", "close", "reset_after:1", "cut_after:1"])
async def test_what_a_fault_ends_was_not_cancelled(fault: str) -> None:
    async with Simulator() as simulator:
        await ask(simulator, post(STREAM, ("x-sim-fault", fault)))
        await until(lambda: not simulator.connections)
        (seen,) = simulator.requests
    assert seen.cancelled_at is None
    assert seen.finished_at is not None


async def test_stopping_cancels_nothing_and_leaves_nothing() -> None:
    gc.collect()
    sockets = _sockets()
    tasks = len(asyncio.all_tasks())
    simulator = Simulator()
    await simulator.start()
    async with connected(simulator) as raw, connected(simulator) as idle:
        raw.send(post(STREAM, ("x-sim-rate", "1"), close=False))
        await raw.to(b"data: ")
        await until(lambda: len(simulator.connections) == 2)
        await simulator.stop()
        assert not simulator.connections
        await raw.to_end()
        await idle.to_end()
        assert (raw.end, idle.end) == ("reset", "reset")
        (seen,) = simulator.requests
        assert seen.cancelled_at is None
    assert _sockets() == sockets
    assert len(asyncio.all_tasks()) == tasks
    await simulator.stop()  # once more changes nothing


def _sockets() -> int:
    return sum(
        os.readlink(each.path).startswith("socket:") for each in os.scandir("/proc/self/fd") if _exists(each.path)
    )


def _exists(path: str) -> bool:
    return Path(path).is_symlink()


async def test_requests_are_bounded_in_number_and_bytes() -> None:
    async with Simulator(Settings(keep_requests=3)) as simulator:
        for _ in range(5):
            await ask(simulator, post(CHAT))
        assert [seen.number for seen in simulator.requests] == [3, 4, 5]
    async with Simulator(Settings(keep_bytes=200)) as simulator:
        for _ in range(5):
            await ask(simulator, post(CHAT))
        assert sum(len(seen.body) for seen in simulator.requests) <= 200
        assert [seen.number for seen in simulator.requests] == [4, 5]
        assert repr(simulator).endswith("5 requests>")


async def test_other_processes_read_the_requests_without_credentials() -> None:
    secret = "sk-canary-0123456789"
    async with Simulator() as simulator:
        names = ("authorization", "x-api-key", "api-key", "x-goog-api-key", "cookie")
        await ask(simulator, post(CHAT, *((name, f"Bearer {secret}") for name in names), ("x-mine", "1")))
        data, _ = await ask(simulator, post(b"", path="/__sim/requests", method="GET"))
        (seen,) = simulator.requests
    (told,) = msgspec.json.decode(split(data)[2])
    assert secret.encode() not in data
    assert told["body"].encode() == seen.body == msgspec.json.encode(CHAT)
    assert (told["number"], told["path"], told["method"]) == (1, "/v1/chat/completions", "POST")
    assert ["x-mine", "1"] in told["headers"]
    assert told["began"] <= told["answered_at"] <= told["finished_at"]
    assert told["cancelled_at"] is None


# -- chance, faults by settings and by header


async def test_the_same_seed_gives_the_same_run() -> None:
    runs = []
    for seed in (5, 5, 6):
        async with Simulator(Settings(faults={"500": 0.3, "close": 0.2}, seed=seed)) as simulator:
            runs.append([(await ask(simulator, post(CHAT)))[0] for _ in range(25)])
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]
    kinds = {data[:12] for data in runs[0]}
    assert kinds == {b"HTTP/1.1 200", b"HTTP/1.1 500", b""}


async def test_refused_connections_are_reset_as_they_come() -> None:
    async with Simulator(Settings(faults={"refuse": 1.0})) as simulator, connected(simulator) as raw:
        assert await raw.to_end() == b""
        assert raw.end == "reset"
        assert (simulator.accepted, len(simulator.requests)) == (1, 0)


async def test_refusal_by_chance_hides_no_other_fault() -> None:
    async with Simulator(Settings(faults={"refuse": 0.5, "500": 1.0}, seed=1)) as simulator:
        answers = [(await ask(simulator, post(CHAT)))[0][:12] for _ in range(12)]
    assert set(answers) == {b"", b"HTTP/1.1 500"}


async def test_a_fault_for_so_many_requests_of_a_key() -> None:
    async with Simulator() as simulator:

        async def status(key: str) -> int:
            headers = (("x-sim-fault", "503"), ("x-sim-times", "2"), ("x-sim-key", key))
            return split((await ask(simulator, post(CHAT, *headers)))[0])[0]

        assert [await status("a") for _ in range(4)] == [503, 503, 200, 200]
        assert await status("b") == 503


async def test_an_empty_fault_header_means_none() -> None:
    async with Simulator(Settings(faults={"500": 1.0})) as simulator:
        data, _ = await ask(simulator, post(CHAT, ("x-sim-fault", "")))
    assert split(data)[0] == 200


async def test_keys_of_counted_faults_are_bounded() -> None:
    simulator = Simulator()
    async with simulator, connected(simulator) as raw:
        headers = [(("x-sim-fault", "500"), ("x-sim-times", "1"), ("x-sim-key", str(at))) for at in range(1100)]
        raw.send(b"".join(post(CHAT, *each, close=False) for each in headers) + post(CHAT))
        await raw.to_end()
    assert len(simulator.once) == 1000
    assert "1099" in simulator.once
    assert "0" not in simulator.once


@pytest.mark.parametrize(
    ("header", "value", "message"),
    [
        ("x-sim-fault", "tornado", "'tornado': no such fault; they are 400 401"),
        ("x-sim-fault", "refuse", "'refuse': no such fault"),
        ("x-sim-fault", "cut_after:x", "'cut_after:x': what stands behind the colon is not a number"),
        ("x-sim-latency-ms", "soon", "x-sim-latency-ms: 'soon' is not a number from 0 to 3.6e+06"),
        ("x-sim-tokens", "-1", "x-sim-tokens: '-1' is not a number from 0 to 1e+06"),
        ("x-sim-tokens", "1e12", "x-sim-tokens: '1e12' is not a number"),
        ("x-sim-rate", "nan", "x-sim-rate: 'nan' is not a number"),
        ("x-sim-times", "", "x-sim-times: '' is not a number"),
        ("x-sim-flavour", "acme", "x-sim-flavour: 'acme' is none of openai anthropic"),
    ],
)
async def test_a_wrong_control_header_is_told(header: str, value: str, message: str) -> None:
    async with Simulator() as simulator:
        data, _ = await ask(simulator, post(CHAT, (header, value)))
    status, _, body = split(data)
    assert status == 400
    assert msgspec.json.decode(body)["error"]["message"].startswith(message)


def test_settings_that_name_no_fault_are_refused() -> None:
    with pytest.raises(ValueError, match="'tornado': no such fault"):
        Simulator(Settings(faults={"tornado": 1.0}))


# -- pace


async def test_each_event_is_a_write_of_its_own_in_its_time() -> None:
    loop = asyncio.get_running_loop()
    async with Simulator() as simulator, connected(simulator) as raw:
        began = loop.time()
        raw.send(post(STREAM, ("x-sim-rate", "200"), ("x-sim-tokens", "10")))
        data = await raw.to_end()
        took = loop.time() - began
    events = chunks(data.partition(b"\r\n\r\n")[2])
    assert len(events) == 14  # role, ten tokens, finish, [DONE], last chunk
    assert took >= 0.055
    assert len(raw.pieces) >= 8  # of 13 writes; a busy machine may join some on their way


async def test_two_thousand_paced_streams_at_once() -> None:
    count = 2000
    tasks = len(asyncio.all_tasks())
    async with Simulator() as simulator:
        loop = asyncio.get_running_loop()
        clients = [connected(simulator) for _ in range(count)]
        raws = [await client.__aenter__() for client in clients]
        try:
            for raw in raws:
                raw.send(post(STREAM, ("x-sim-rate", "50"), ("x-sim-tokens", "5")))
            await until(lambda: len(simulator.requests) == count)
            assert len(asyncio.all_tasks()) <= tasks + 1  # none a stream
            began = loop.time()
            bodies = [split(await raw.to_end())[2] for raw in raws]
            assert loop.time() - began < 10
        finally:
            for client in clients:
                await client.__aexit__(None, None, None)
        assert all(body.endswith(b"data: [DONE]\n\n") for body in bodies)
        assert {body.count(b"data: ") for body in bodies} == {8}
        assert all(seen.cancelled_at is None and seen.finished_at is not None for seen in simulator.requests)
        await until(lambda: not simulator.connections)


class _Sink:
    """A transport that is full after each write."""

    def __init__(self, peer: Peer) -> None:
        self.peer, self.written = peer, list[bytes]()

    def write(self, data: bytes) -> None:
        self.written.append(data)
        self.peer.pause_writing()

    def is_closing(self) -> bool:
        return False


async def test_nothing_is_written_to_a_client_that_does_not_read() -> None:
    peer = Peer(Simulator(), asyncio.get_running_loop())
    sink = _Sink(peer)
    peer.connection_made(cast("asyncio.Transport", sink))
    peer._play([Step(0.0, b"a"), Step(1e-6, b"b"), Step(1e-6, b"c")])
    for written in ([b"a"], [b"a", b"b"]):
        for _ in range(5):
            await asyncio.sleep(0)
        assert sink.written == written
        peer.resume_writing()
    await until(lambda: len(sink.written) == 3)
    assert not peer._playing
    peer.connection_lost(None)


# -- other ways to listen


async def test_a_unix_socket_is_removed_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "sim.sock"
    for _ in range(2):
        async with Simulator(Settings(unix=str(path))) as simulator:
            data, _ = await ask(simulator, post(CHAT))
            assert split(data)[0] == 200
        assert not path.exists()


@pytest.mark.parametrize(
    ("body", "steps"),
    [
        (b'{"stream":true}', _BENCH_STREAM),
        (b'{"stream": true}', _BENCH_STREAM),
        (b'{"stream":false}', _BENCH_UNARY),
    ],
)
async def test_canned_answers_for_benchmarks(body: bytes, steps: list[Step]) -> None:
    async with Simulator(Settings(bench=True)) as simulator:
        data, _ = await ask(simulator, post(body))
        assert not simulator.requests
    assert data == b"".join(step.do for step in steps if isinstance(step.do, bytes))
    assert len(steps) == (1 if steps is _BENCH_UNARY else 65)


async def test_anthropic_answers_have_its_headers() -> None:
    async with Simulator() as simulator:
        data, _ = await ask(simulator, post(MESSAGES, ("anthropic-version", "2023-06-01"), path="/v1/messages"))
    status, headers, _ = split(data)
    assert status == 200
    assert headers["request-id"] == "req_sim_1"
    assert headers["anthropic-ratelimit-requests-remaining"] == "29999"
    assert "x-request-id" not in headers
