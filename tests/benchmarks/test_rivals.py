"""The table of rivals: each can be asked, installed, started; what cannot says why."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from benchmarks import rivals
from benchmarks.rivals import RIVALS, Place, Rival, Unavailable


def place(folder: Path) -> Place:
    return Place(folder=folder, home=folder / "home", port=4000, upstream=4999)


def test_versions_are_pinned() -> None:
    for rival in RIVALS:
        assert all(re.search(r"==\d", each) for each in rival.pip)
        assert not rival.version or any(rival.version in str(each) for each in (*rival.pip, *rival.npm))
        assert rival.version or not (rival.pip or rival.npm)


@pytest.mark.parametrize("rival", [each for each in RIVALS if each.name != "nginx"], ids=lambda each: each.name)
def test_each_is_started_on_its_port_before_the_provider(rival: Rival, tmp_path: Path) -> None:
    assert rival.start is not None
    command, env, port = rival.start(place(tmp_path))
    written = [path.read_text() for path in tmp_path.iterdir()]
    told = " ".join([*command, *env.values(), *written, *(value for _, value in rival.headers)])
    assert "4999" in told or "{upstream}" in told
    assert port == 4000 or isinstance(port, Path)


@pytest.mark.parametrize("rival", RIVALS, ids=lambda each: each.name)
def test_each_is_asked_in_its_own_words(rival: Rival) -> None:
    data = rivals.body(rival, size=300)
    head, _, body = rivals.request(rival, 4999, data).partition(b"\r\n\r\n")
    assert msgspec.json.decode(body)["model"] == rival.model
    assert head.startswith(f"POST {rival.path} HTTP/1.1\r\nhost: ".encode())
    assert f"\r\ncontent-length: {len(data)}".encode() in head
    assert b"{" not in head


def test_what_is_installed_is_not_installed_again(tmp_path: Path) -> None:
    rival = Rival("x", "1", "", pip=("no-such-package-as-this==1",))
    (tmp_path / "x-1").mkdir()
    (tmp_path / "x-1" / "installed").touch()
    assert rivals.install(rival, tmp_path) == tmp_path / "x-1"


def test_what_cannot_be_installed_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Unavailable, match="Not a directory"):
        rivals.install(Rival("x", "1", "", pip=("x==1",)), tmp_path / "file")


def test_what_does_not_start_says_why(tmp_path: Path) -> None:
    def start(where: Place) -> rivals.Start:
        return rivals.Start(["sh", "-c", "echo starting; echo 'error: no | luck' >&2; exit 3"], {}, where.port)

    with pytest.raises(Unavailable, match=r"^x ended at once with 3: error: no / luck$"):
        rivals.start(Rival("x", "1", "", start), place(tmp_path), None)


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("", ""),
        ("a\nb\n\n", "b"),
        ("ERROR: first\nsecond\n", "ERROR: first"),
        ("x | y", "x / y"),
        ("npm error e\nnpm error A complete log", "npm error e"),
    ],
)
def test_the_reason_is_the_line_that_says_error(output: str, expected: str) -> None:
    assert rivals.reason(output) == expected
