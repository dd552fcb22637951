"""The ring that coordinator and source agent share."""

from __future__ import annotations

import threading

import pytest

from migrate.transport.ring import SLOT, SLOTS, Ring


def test_contents_pass_and_slots_come_back() -> None:
    with Ring.create() as ring:
        for round in range(3 * SLOTS):
            contents = bytes([round]) * 5000
            slot = ring.put(contents)
            assert slot is not None
            assert ring.slot(slot, len(contents)) == contents
            ring.free(slot)


def test_a_full_ring_holds_back_until_a_slot_is_free() -> None:
    with Ring.create() as ring:
        taken = [ring.put(b"x") for _ in range(SLOTS)]
        assert sorted(slot for slot in taken if slot is not None) == list(range(SLOTS))
        late: list[int | None] = []
        waiting = threading.Thread(target=lambda: late.append(ring.put(b"late")))
        waiting.start()
        waiting.join(0.05)
        assert waiting.is_alive()
        ring.free(3)
        waiting.join(5)
        assert late == [3]


def test_only_slots_that_are_there() -> None:
    with Ring.create() as ring:
        for number, length in ((SLOTS, 1), (-1, 1), (0, SLOT + 1)):
            with pytest.raises(ValueError, match="no slot"):
                ring.slot(number, length)


def test_descriptors_that_did_not_come_along() -> None:
    assert Ring.attach("1000000,1000001") is None
