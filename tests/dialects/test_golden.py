"""Every case of tests/golden, translated: requests, whole answers, and errors are what they were when last read."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.dialects import CONVERSATIONS
from sidecar.wire import body
from tests.dialects.golden import OTHER, cases, check, pretty

pytestmark = pytest.mark.usefixtures("_steady")


def _name(path: Path) -> str:
    return f"{path.parent.name}-{path.stem}"


@pytest.fixture
def rewrite(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--rewrite-golden"))


@pytest.mark.parametrize("case", cases("request"), ids=_name)
def test_request(case: Path, rewrite: bool) -> None:
    spoken = case.parent.name
    members = body.envelope(case.read_bytes())
    model = str(body.document(members["model"])).partition("/")[2]
    written = CONVERSATIONS[OTHER[spoken]].write_request(CONVERSATIONS[spoken].read_request(members), model)
    got = body.rebuild({"request": body.raw(written.members), "dropped": body.raw(written.dropped)})
    check(case.with_suffix(f".{OTHER[spoken]}.json"), pretty(got), rewrite=rewrite)


@pytest.mark.parametrize("case", cases("reply"), ids=_name)
def test_reply(case: Path, rewrite: bool) -> None:
    spoken = case.parent.name
    reply = CONVERSATIONS[spoken].read_reply(case.read_bytes())
    got = CONVERSATIONS[OTHER[spoken]].write_reply(reply)
    check(case.with_suffix(f".{OTHER[spoken]}.json"), pretty(got), rewrite=rewrite)


def test_there_are_cases() -> None:
    for spoken in OTHER:
        for kind in ("request", "reply"):
            assert any(case.parent.name == spoken for case in cases(kind))
