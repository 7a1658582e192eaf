"""A stream that breaks off and is gone on with elsewhere, on real sockets: one answer to the client, told as two."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import anthropic
import msgspec
import openai
import pytest

from sidecar.config import Model, OnDisconnect
from tests.faults.peer import FIN, GONE, REQUEST, RST, Again, Pause, RawServer, Script
from tests.faults.stand import Reply, Stand, ask, comes_true, provider, read, standing
from tests.faults.transcripts import CHAT, LAST, MESSAGES, WAYS, Dialect, Way, chunk, head, reply

# The client's language, and the provider's that breaks off and that goes on.
PAIRS = {
    "chat, chat": (CHAT, "lab/a", "lab/b"),
    "chat, messages": (CHAT, "lab/a", "claude/b"),
    "chat from messages, chat": (CHAT, "claude/a", "lab/b"),
    "chat from messages, messages": (CHAT, "claude/a", "claude/b"),
    "messages, messages": (MESSAGES, "claude/a", "claude/b"),
    "messages, chat": (MESSAGES, "claude/a", "lab/b"),
    "messages from chat, chat": (MESSAGES, "lab/a", "lab/b"),
    "messages from chat, messages": (MESSAGES, "lab/a", "claude/b"),
}
EVERY_PAIR = pytest.mark.parametrize(("ours", "first", "second"), PAIRS.values(), ids=PAIRS)
FAULT = {
    CHAT: b'data: {"error":{"message":"overloaded","type":"server_error","code":"overloaded"}}\n\n',
    MESSAGES: b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}\n\n',
}
MARK = re.compile(rb"\n\n: sidecar: the answer goes on from [a-z]+/[bc]\n\n")
CHAT_USAGE = (
    b'data: {"id":"c2","object":"chat.completion.chunk","created":1,"model":"m","choices":[],'
    b'"usage":{"prompt_tokens":4,"completion_tokens":2,"total_tokens":6}}\n\n'
)


def theirs(target: str) -> Dialect:
    return MESSAGES if target.startswith("claude") else CHAT


def way(ours: Dialect, target: str) -> Way:
    return Way(ours, theirs(target), target)


def says(dialect: Dialect, *pieces: str) -> list[bytes]:
    """An answer of these words, an event each, between its beginning and its end."""
    begin, one, _, *end = dialect.events
    if dialect is CHAT:
        end.insert(1, CHAT_USAGE)
    return [begin, *(one.replace(b'"one"', msgspec.json.encode(piece)) for piece in pieces), *end]


def broken(target: str, *pieces: str, end: Any = RST) -> Script:
    """A stream that ends in an odd way after these words."""
    events = says(theirs(target), *pieces)[: len(pieces) + 1]
    return [REQUEST, head() + b"".join(map(chunk, events)), *(end if isinstance(end, list) else [end])]


def good(target: str, *pieces: str) -> Script:
    return [REQUEST, head() + b"".join(map(chunk, says(theirs(target), *pieces))) + LAST]


def model(*targets: str, **options: Any) -> dict[str, Model]:
    return {"long": Model(targets=targets, continuation=True, **options)}


def in_turn(*scripts: Script) -> Callable[[int], Script]:
    return lambda number: scripts[number]


def said(reply: Reply, dialect: Dialect) -> str:
    """The text of a streamed answer, as a client puts it together."""
    out = ""
    for line in reply.body.split(b"\n"):
        if line.startswith(b"data: {"):
            event = msgspec.json.decode(line[6:])
            if dialect is MESSAGES:
                out += event.get("delta", {}).get("text", "")
            elif event.get("choices"):
                out += event["choices"][0]["delta"].get("content") or ""
    return out


def asked(stand: Stand, number: int) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode(stand.peer.requests[number].partition(b"\r\n\r\n")[2])
    return found


def text_of(message: dict[str, Any]) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


@EVERY_PAIR
@pytest.mark.parametrize("end", ["reset", "end of HTTP", "half an event", "error event", "error and end"])
async def test_another_goes_on_in_the_same_answer(ours: Dialect, first: str, second: str, end: str) -> None:
    fault = chunk(FAULT[theirs(first)])
    half = chunk(theirs(first).events[2][:30])
    ends: dict[str, list[Any]] = {
        "reset": [RST],
        "end of HTTP": [LAST],
        "half an event": [half, RST],
        "error event": [fault, GONE],
        "error and end": [fault + LAST],
    }
    last = good(second, " a ", "time")  # on a connection of its own, or the same where that was left in order
    scripts = in_turn([*broken(first, "Once ", "upon", end=ends[end]), *last], last)
    async with standing(scripts, models=model(first, second)) as stand:
        answer = await stand.ask(ask(way(ours, first), model="long"))
        assert (answer.status, answer.ended, said(answer, ours)) == (200, True, "Once upon a time")
        assert answer.body.count(ours.done) == (1 if ours is CHAT else 2)  # of Messages an event's name and its type
        assert b'"error"' not in answer.body
        assert len(MARK.findall(answer.body)) == 1
        assert answer.body.count(b"message_start") == (0 if ours is CHAT else 2)
        assert len(stand.peer.requests) == 2
        messages = asked(stand, 1)["messages"]
        assert [message["role"] for message in messages] == ["user", "assistant"]
        assert text_of(messages[1]) == "Once upon"
        assert "prefix" not in messages[1]
        row = (await stand.recorded())[0]
    assert (row["status"], row["error"], row["continued"], row["attempts"]) == (200, "", 1, 2)
    assert f"{row['provider']}/{row['model']}" == second
    before = 3 if theirs(first) is MESSAGES else 0
    assert row["input_tokens"] == before + (3 if theirs(second) is MESSAGES else 4)


@EVERY_PAIR
async def test_the_official_sdks_read_one_answer(ours: Dialect, first: str, second: str) -> None:
    """Its usage is that of both together."""
    scripts = in_turn(broken(first, "Once ", "upon"), good(second, " a ", "time"))
    async with standing(scripts, models=model(first, second)) as stand:
        url = f"http://127.0.0.1:{stand.port}"
        if ours is CHAT:
            async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0, timeout=5) as client:
                async with client.chat.completions.stream(
                    model="long",
                    messages=[{"role": "user", "content": "hi"}],
                    stream_options={"include_usage": True},
                ) as stream:
                    done = await stream.get_final_completion()
            text, reason = done.choices[0].message.content, done.choices[0].finish_reason
            assert done.usage is not None
            used = done.usage.prompt_tokens
            assert (reason, len(done.choices)) == ("stop", 1)
        else:
            async with anthropic.AsyncAnthropic(base_url=url, api_key="k", max_retries=0, timeout=5) as claude:
                async with claude.messages.stream(
                    model="long", messages=[{"role": "user", "content": "hi"}], max_tokens=9
                ) as events:
                    message = await events.get_final_message()
            assert (message.stop_reason, len(message.content)) == ("end_turn", 1)
            text, used = message.content[0].text, message.usage.input_tokens  # type: ignore[union-attr]
        assert text == "Once upon a time"
        row = (await stand.recorded())[0]
        assert used == row["input_tokens"]
        assert len(stand.peer.requests) == 2


async def test_white_space_at_the_seam_is_there_once() -> None:
    """Anthropic takes none at the end of what is to be gone on with; a model then begins with it anew."""
    scripts = in_turn(broken("claude/a", "Once", " \n"), good("claude/b", " ", "upon", " a"))
    async with standing(scripts, models=model("claude/a", "claude/b")) as stand:
        answer = await stand.ask(ask(WAYS["messages"], model="long"))
        assert said(answer, MESSAGES) == "Once \nupon a"
        assert text_of(asked(stand, 1)["messages"][1]) == "Once"


@pytest.mark.parametrize("ours", [CHAT, MESSAGES], ids=["chat", "messages"])
async def test_a_prefix_is_marked_for_who_wants_it_marked(ours: Dialect) -> None:
    def more(raw: RawServer) -> dict[str, Any]:
        return {"deep": provider(raw, "deepseek")}

    scripts = in_turn(broken("lab/a", "Once "), good("deep/b", "upon"))
    async with standing(scripts, models=model("lab/a", "deep/b"), more=more) as stand:
        answer = await stand.ask(ask(way(ours, "lab/a"), model="long"))
        assert said(answer, ours) == "Once upon"
        assert asked(stand, 1)["messages"][-1] == {"role": "assistant", "content": "Once", "prefix": True}


async def test_two_break_off_and_the_third_goes_on() -> None:
    """Each is asked with all that was said, once."""
    targets = ("lab/a", "lab/b", "lab/c")
    scripts = in_turn(broken("lab/a", "Once "), broken("lab/b", "upon"), good("lab/c", " a time"))
    async with standing(scripts, models=model(*targets)) as stand:
        answer = await stand.ask(ask(WAYS["chat"], model="long"))
        assert (answer.ended, said(answer, CHAT)) == (True, "Once upon a time")
        assert len(MARK.findall(answer.body)) == 2
        messages = asked(stand, 2)["messages"]
        assert [message["role"] for message in messages] == ["user", "assistant"]
        assert messages[1]["content"] == "Once upon"
        assert (await stand.recorded())[0]["continued"] == 2
        assert len(stand.peer.requests) == 3


async def test_two_that_always_break_off_are_not_asked_for_ever() -> None:
    async with standing(broken("lab/a", "x"), models=model("lab/a", "lab/b")) as stand:
        answer = await stand.ask(ask(WAYS["chat"], model="long"))
        assert answer.ended
        assert CHAT.fault.search(answer.body)
        assert len(stand.peer.requests) == 2


@EVERY_PAIR
@pytest.mark.parametrize("fails", ["refuses", "cut", "error in it", "empty", "one body"])
async def test_the_one_that_goes_on_fails_and_an_error_tells(
    ours: Dialect, first: str, second: str, fails: str
) -> None:
    ways: dict[str, list[Any]] = {
        "refuses": [reply(b'{"error":{"message":"no","type":"x"}}', status=b"500 Oh")],
        "cut": [head(), chunk(theirs(second).events[0]), RST],
        "error in it": [head(), chunk(FAULT[theirs(second)]), LAST],
        "empty": [head(), LAST],
        "one body": [reply(theirs(second).body)],
    }
    scripts = in_turn(broken(first, "Once"), [REQUEST, *ways[fails]])
    async with standing(scripts, models=model(first, second)) as stand:
        answer = await stand.ask(ask(way(ours, first), model="long"))
        assert (answer.status, answer.ended, said(answer, ours)) == (200, True, "Once")
        assert ours.fault.search(answer.body)
        assert ours.done not in answer.body
        assert b"goes on" not in answer.body
        assert len(stand.peer.requests) == 2
        row = (await stand.recorded())[0]
    assert (row["error"], row["continued"], f"{row['provider']}/{row['model']}") == ("provider_cut", 0, first)
    assert row["input_tokens"] == (3 if theirs(first) is MESSAGES else None)  # of what was answered, and once


async def test_the_next_is_asked_where_the_one_before_could_not_go_on() -> None:
    refuses: Script = [REQUEST, head(), chunk(FAULT[MESSAGES]), LAST]
    scripts = in_turn(broken("lab/a", "Once "), refuses, good("lab/c", "upon"))
    async with standing(scripts, models=model("lab/a", "claude/b", "lab/c")) as stand:
        answer = await stand.ask(ask(WAYS["chat"], model="long"))
        assert (answer.ended, said(answer, CHAT)) == (True, "Once upon")
        assert len(stand.peer.requests) == 3


async def test_a_target_that_takes_no_prefill_is_passed_over() -> None:
    def more(raw: RawServer) -> dict[str, Any]:
        return {"open": provider(raw, "openai")}

    scripts = in_turn(broken("lab/a", "Once "), good("lab/c", "upon"))
    async with standing(scripts, models=model("lab/a", "open/b", "lab/c"), more=more) as stand:
        answer = await stand.ask(ask(WAYS["chat"], model="long"))
        assert said(answer, CHAT) == "Once upon"
        assert [asked(stand, number)["model"] for number in range(2)] == ["a", "c"]


CALL = (
    b'data: {"id":"c1","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"x","type":"function",'
    b'"function":{"name":"f","arguments":"{\\"a"}}]},"finish_reason":null}]}\n\n'
)
TOOL = (
    b'event: content_block_stop\ndata: {"type":"content_block_stop","index":0}\n\n'
    b'event: content_block_start\ndata: {"type":"content_block_start","index":1,"content_block":{"type":"tool_use",'
    b'"id":"toolu_1","name":"f","input":{}}}\n\n'
)


@EVERY_PAIR
async def test_never_with_a_call_begun(ours: Dialect, first: str, second: str) -> None:
    call = chunk(TOOL if theirs(first) is MESSAGES else CALL)
    async with standing(broken(first, "Once", end=[call, RST]), models=model(first, second)) as stand:
        answer = await stand.ask(ask(way(ours, first), model="long"))
        assert answer.ended
        assert ours.fault.search(answer.body)
        assert len(stand.peer.requests) == 1


@pytest.mark.parametrize(
    "why", ["off", "no fall-back", "the cause is not one", "nothing said", "two choices", "no other"]
)
async def test_where_it_is_not_asked_for(why: str) -> None:
    options: dict[str, Any] = {"fallback_on": ("rate_limit",)} if why == "the cause is not one" else {}
    targets = ("lab/a",) if why == "no other" else ("lab/a", "lab/b")
    models = model(*targets, **options) if why != "off" else {"long": Model(targets=targets)}
    lines = (b"x-sidecar-fallback: off",) if why == "no fall-back" else ()
    members: dict[str, Any] = {"n": 2} if why == "two choices" else {}
    async with standing(broken("lab/a", "   " if why == "nothing said" else "Once"), models=models) as stand:
        answer = await stand.ask(ask(WAYS["chat"], *lines, model="long", **members))
        assert answer.ended
        assert CHAT.fault.search(answer.body)
        assert len(stand.peer.requests) == 1
        assert (await stand.recorded())[0]["error"] == "provider_cut"


async def test_a_stall_is_gone_on_with_as_well() -> None:
    scripts = in_turn(broken("lab/a", "Once ", end=GONE), good("lab/b", "upon"))
    async with standing(scripts, models=model("lab/a", "lab/b"), timeouts={"idle_seconds": 0.1}) as stand:
        answer = await stand.ask(ask(WAYS["chat"], model="long"))
        assert said(answer, CHAT) == "Once upon"
        assert stand.peer.connections[0].how is not None


@pytest.mark.parametrize("ours", [CHAT, MESSAGES], ids=["chat", "messages"])
async def test_the_clients_own_deadline_is_nobodys_to_go_on_with(ours: Dialect) -> None:
    target = "lab/a"
    async with standing(broken(target, "Once", end=GONE), models=model(target, "lab/b")) as stand:
        answer = await stand.ask(ask(way(ours, target), b"x-sidecar-timeout-ms: 100", model="long"))
        assert ours.fault.search(answer.body)
        assert len(stand.peer.requests) == 1


async def test_the_client_leaves_while_another_is_asked_to_go_on() -> None:
    scripts = in_turn(broken("lab/a", "Once"), [REQUEST, GONE])
    async with standing(scripts, models=model("lab/a", "lab/b")) as stand, stand.client() as client:
        client.write(ask(WAYS["chat"], model="long"))
        await stand.peer.requested(2)
        await client.run(FIN)
        at = asyncio.get_running_loop().time()
        await comes_true(lambda: not stand.peer.open, "left")
        assert stand.peer.connections[1].closed_at - at < 0.05
        assert (await stand.recorded())[0]["status"] == 499


async def test_nobody_is_asked_to_go_on_for_a_client_that_has_left() -> None:
    go_on = asyncio.Event()
    drain: dict[str, Any] = {"on_disconnect": OnDisconnect(policy="drain")}
    script = broken("lab/a", "Once", end=[Pause(go_on), RST])
    async with standing(script, models=model("lab/a", "lab/b"), **drain) as stand, stand.client() as client:
        client.write(ask(WAYS["chat"], model="long"))
        await client.take_until(b"Once")
        await client.run(RST)
        go_on.set()
        row = (await stand.recorded())[0]
        assert (row["status"], row["error"]) == (499, "caller_gone")
        assert len(stand.peer.requests) == 1


async def test_coalesced_comments_and_continued_together() -> None:
    """Both clients read the same, comments and seam included."""
    go_on = asyncio.Event()
    first = broken("lab/a", "Once ", end=[Pause(go_on), RST])
    models = model("lab/a", "lab/b", coalesce=True, keepalive_comment_seconds=0.05)
    async with standing(in_turn(first, good("lab/b", "upon")), models=models) as stand:
        async with stand.client() as one, stand.client() as two:
            for client in (one, two):
                client.write(ask(WAYS["chat"], model="long"))
            await one.take_until(b"Once ")
            await one.take_until(b": sidecar\n\n")
            go_on.set()
            for client in (one, two):
                await client.take_until(LAST)
            answers = [read(bytes(client.received)) for client in (one, two)]
        assert answers[0].body == answers[1].body
        assert said(answers[0], CHAT) == "Once upon"
        assert len(stand.peer.requests) == 2


async def test_an_answer_that_does_not_break_off_is_as_it_was() -> None:
    async with standing([Again((REQUEST, WAYS["messages"].stream()))], models=model("claude/a", "lab/b")) as stand:
        answer = await stand.ask(ask(WAYS["messages"], model="long"))
        assert (answer.ended, said(answer, MESSAGES)) == (True, "one twö")
        assert len(stand.peer.requests) == 1
        row = (await stand.recorded())[0]
    assert (row["continued"], row["input_tokens"], row["output_tokens"]) == (0, 3, 2)
