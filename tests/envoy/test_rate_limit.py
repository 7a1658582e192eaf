"""What envoy/README.md says of Envoy's global rate limit service, with the real Envoy and a service that says no."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any, Final

import trustme
import yaml
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, StreamEnded

from tests.envoy.stand import FOLDER, certify, document, envoy
from tests.faults.stand import ask
from tests.faults.transcripts import WAYS

NO: Final = b"\x08\x02"  # RateLimitResponse { overall_code: OVER_LIMIT }
BLOCKS: Final = re.findall(r"^```yaml\n(.*?)^```", (FOLDER / "README.md").read_text(), re.MULTILINE | re.DOTALL)


class NeverAgain:
    """A rate limit service: gRPC over HTTP/2, and the answer is no."""

    def __init__(self) -> None:
        self.asked = b""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        h2 = H2Connection(H2Configuration(client_side=False))
        h2.initiate_connection()
        try:
            while data := await reader.read(65536):
                for event in h2.receive_data(data):
                    if isinstance(event, DataReceived):
                        self.asked += event.data
                    elif isinstance(event, StreamEnded):
                        h2.send_headers(event.stream_id, [(":status", "200"), ("content-type", "application/grpc")])
                        h2.send_data(event.stream_id, b"\0" + len(NO).to_bytes(4, "big") + NO)
                        h2.send_headers(event.stream_id, [("grpc-status", "0")], end_stream=True)
                writer.write(h2.data_to_send())
        finally:
            writer.close()


def with_limits(port: int) -> str:
    """ingress.yaml with the blocks of README.md where they say that they belong."""
    found: Any = document("ingress.yaml")
    *_, ratelimit, limits, cluster = (yaml.safe_load(block.replace("8081", str(port))) for block in BLOCKS)
    found["static_resources"]["clusters"].append(cluster)
    for listener in found["static_resources"]["listeners"]:
        (chain,) = listener["filter_chains"]
        http = chain["filters"][0]["typed_config"]
        if ratelimit not in http["http_filters"]:  # both listeners have the same
            http["http_filters"].insert(0, ratelimit)
            http["route_config"]["virtual_hosts"][0]["routes"][0]["route"].update(limits)
    return yaml.safe_dump(found, sort_keys=False)


async def test_a_limit_of_the_services_is_an_error_of_the_api(tmp_path: Path, authority: trustme.CA) -> None:
    certify(authority, tmp_path)
    service = NeverAgain()
    async with await asyncio.start_server(service.serve, "127.0.0.1", 0) as listening:
        text = with_limits(listening.sockets[0].getsockname()[1])
        async with envoy("ingress.yaml", tmp_path, {(FOLDER / "ingress.yaml").read_text(): text}) as before:
            chat, messages = [await before.ask(ask(WAYS[name])) for name in ("chat", "messages")]
    assert b"llm" in service.asked
    assert b"remote_address" in service.asked
    assert (chat.status, messages.status) == (429, 429)
    assert chat.json["error"]["type"] == messages.json["error"]["type"] == "rate_limit_error"
    assert chat.json["error"]["code"] == "policy_rate_limited"
    assert chat.get(b"x-sidecar-error") == messages.get(b"x-sidecar-error") == b"policy_rate_limited"
    assert not [name for name, _ in chat.headers if name.startswith(b"x-envoy")]
