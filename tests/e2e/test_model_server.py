"""A real model server behind the sidecar: `transformers serve` with a tiny Llama that is written on the spot.

Needs its executable (`pip install torch "transformers[serving]"`, best in an environment of its own), by the variable
SIDECAR_MODEL_SERVER or on the PATH.
"""

from __future__ import annotations

import os
import shutil
import socket
import string
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from sidecar import Config, Sidecar
from sidecar.config import Model, Provider
from tests.components import require
from tests.e2e import tiny_llama
from tests.e2e.doors import Door, ours

pytestmark = [pytest.mark.model_server, pytest.mark.timeout(180)]
START_SECONDS = 120.0
ASK: Any = [{"role": "user", "content": "say something"}]


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The base URL of a running model server, and the name of its model."""
    executable = os.environ.get("SIDECAR_MODEL_SERVER") or shutil.which("transformers")
    require("a model server (transformers serve; SIDECAR_MODEL_SERVER names its executable)", executable)
    assert executable is not None
    folder = tmp_path_factory.mktemp("tiny-llama")
    tiny_llama.write(folder)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    command = [executable, "serve", str(folder), "--device", "cpu", "--host", "127.0.0.1", "--port", str(port)]
    alone = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    log = folder / "log"
    with log.open("wb") as lines:
        process = subprocess.Popen(command, env=os.environ | alone, stdout=lines, stderr=subprocess.STDOUT)
    try:
        _wait(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}/v1", str(folder)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    with httpx2.Client(trust_env=False) as client:
        while time.monotonic() < deadline:
            assert process.poll() is None, f"the model server ended: {log.read_text()[-2000:]}"
            try:
                if client.get(url).status_code == 200:
                    return
            except httpx2.TransportError:
                time.sleep(0.2)
    pytest.fail(f"the model server did not start in {START_SECONDS:g} s: {log.read_text()[-2000:]}")


def behind(upstream: tuple[str, str]) -> Any:
    base_url, model = upstream
    config = Config(
        providers={"lab": Provider(kind="openai-compatible", base_url=base_url)},
        models={"tiny": Model(targets=(f"lab/{model}",))},
    )
    return ours(Sidecar(config))


async def said(door: Door, **options: Any) -> str:
    async with door.openai_async(timeout=60) as client:
        done = await client.chat.completions.create(model="tiny", messages=ASK, max_tokens=12, **options)
    assert done.usage is not None
    assert done.usage.completion_tokens == 12
    assert done.choices[0].finish_reason in ("length", "stop")
    return done.choices[0].message.content or ""


async def test_chat_whole_and_streamed(upstream: tuple[str, str]) -> None:
    async with behind(upstream) as door:
        whole = await said(door)
        assert set(whole) <= set(string.ascii_lowercase)
        assert len(whole) == 12
        async with door.openai_async(timeout=60) as client:
            stream = await client.chat.completions.create(
                model="tiny", messages=ASK, max_tokens=12, stream=True, stream_options={"include_usage": True}
            )
            chunks = [chunk async for chunk in stream]
        pieces = [
            chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content
        ]
        assert "".join(pieces) == whole
        assert len(pieces) > 1
        assert [chunk.usage.completion_tokens for chunk in chunks if chunk.usage][-1:] == [12]


async def test_messages_whole_and_streamed(upstream: tuple[str, str]) -> None:
    async with behind(upstream) as door:
        whole = await said(door)
        async with door.anthropic_async(timeout=60) as client:
            done = await client.messages.create(model="tiny", messages=ASK, max_tokens=12)
            assert [block.text for block in done.content if block.type == "text"] == [whole]
            assert done.usage.output_tokens == 12
            async with client.messages.stream(model="tiny", messages=ASK, max_tokens=12) as stream:
                assert "".join([text async for text in stream.text_stream]) == whole
                assert (await stream.get_final_message()).stop_reason == done.stop_reason


async def test_it_serves_on_after_a_client_has_left(upstream: tuple[str, str]) -> None:
    async with behind(upstream) as door, door.openai_async(timeout=60) as client:
        stream = await client.chat.completions.create(model="tiny", messages=ASK, max_tokens=400, stream=True)
        await anext(stream)
        await stream.close()
        assert await said(door)


async def test_its_error_passes_untouched(upstream: tuple[str, str]) -> None:
    base_url, model = upstream
    async with behind(upstream) as door, httpx2.AsyncClient(timeout=60, trust_env=False) as client:
        answer = await client.post(f"{door.url}/v1/chat/completions", json={"model": "tiny", "messages": 5})
        direct = await client.post(f"{base_url}/chat/completions", json={"model": model, "messages": 5})
    assert direct.status_code >= 400
    assert (answer.status_code, answer.content) == (direct.status_code, direct.content)
    assert answer.headers["x-sidecar-error"].startswith("provider_")
