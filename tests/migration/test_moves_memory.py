"""Memory moves: contents, what may be done with it, what it becomes, and what changes between two rounds."""

from __future__ import annotations

import os

import pytest

from tests.migration.journey import Journeys

# How many seeds of the churning victim are moved; more for a longer look.
SEEDS = range(int(os.environ.get("MIGRATE_SEEDS", "4")))


def test_shared_anonymous_memfd_and_files(journeys: Journeys) -> None:
    journeys.start("shared").go()


def test_heap_stack_and_areas_that_grow(journeys: Journeys) -> None:
    journeys.start("grows").go()


def test_what_must_fault_still_does(journeys: Journeys) -> None:
    journeys.start("forbidden").go()


def test_advice_locks_and_forks(journeys: Journeys) -> None:
    journeys.start("forks").go()


@pytest.mark.parametrize("tracker", ["pagemap-scan", "digest"])
def test_memory_that_changes_between_rounds(journeys: Journeys, tracker: str) -> None:
    """With little pauses, so that the moves are in the middle of something, and without any."""
    for seed in SEEDS:
        pause = ("200",) if seed % 2 else ()
        journey = journeys.start("remaps", str(seed), *pause)
        journey.move("--tracker", tracker, "--no-converge", "continue", look=False)
        journey.tell()
        journey.verdict(60)


@pytest.mark.parametrize("tracker", ["pagemap-scan", "digest"])
def test_buffer_that_is_written_to(journeys: Journeys, tracker: str) -> None:
    journeys.start("buffer", "64", "100").go("--tracker", tracker, "--no-converge", "continue")


def test_large_random_buffer_that_is_written_to(journeys: Journeys) -> None:
    outcome = journeys.start("buffer", "512", "25").go("--no-converge", "continue")
    assert outcome.report["bytes_sent"] > 512 << 20


def test_a_thousand_areas(journeys: Journeys) -> None:
    journeys.start("buffer", "16", "0", "1000").go()


def test_compressed(journeys: Journeys) -> None:
    journeys.start("shared").go("--compress", "lz4")
    journeys.start("buffer", "16", "10").go("--compress", "lz4", "--no-converge", "continue")
