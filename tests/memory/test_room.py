"""Shares of what there is, and the bodies that are held of them."""

from __future__ import annotations

import pytest

from sidecar.errors import BodyTooLarge, Overloaded
from sidecar.memory import room as rooms
from sidecar.memory.room import Room

MIB = 1024 * 1024


@pytest.mark.parametrize(
    ("most", "workers", "wanted"),
    [(80, 1, 32), (128, 1, 80), (512, 1, 464), (512, 2, 208), (40, 1, 5), (64, 2, 4)],
)
def test_what_is_to_spare_is_what_no_process_has_at_rest(most: int, workers: int, wanted: int) -> None:
    assert rooms.spare(most * MIB, workers) == wanted * MIB


def test_connections_are_bounded_by_memory() -> None:
    assert rooms.connections(512 * MIB, 1) == 464 * 8
    assert rooms.connections(512 * MIB, 2) == 208 * 8
    assert rooms.connections(1 * MIB, 1) == 16
    assert rooms.connections(0, 1) == rooms.MOST


def test_room_is_for_bodies_that_count_twice() -> None:
    room = Room(1000)
    room.take(300, 300)
    room.take(200, 200)
    with pytest.raises(Overloaded) as caught:
        room.take(1, 1)
    assert (caught.value.status, caught.value.code, caught.value.retry_after) == (503, "sidecar_overloaded", 1.0)
    assert (room.held, room.refused) == (500, 1)  # a refusal takes nothing
    room.give(200)
    room.take(200, 500)
    assert room.held == 500


def test_a_body_that_there_is_never_room_for_is_too_large() -> None:
    room = Room(1000)
    with pytest.raises(BodyTooLarge, match="the body has 501 bytes; there is memory for 500 here"):
        room.take(501, 501)
    room.take(500, 500)
    with pytest.raises(BodyTooLarge):
        room.take(1, 501)  # the end of one that came in pieces
    with pytest.raises(Overloaded):
        room.take(1, 500)
    assert (room.held, room.refused) == (500, 3)


def test_where_nobody_tells_a_bound_there_is_room_for_all() -> None:
    room = Room()
    room.take(1 << 60, 1 << 60)
    assert (room.held, room.refused) == (1 << 60, 0)
