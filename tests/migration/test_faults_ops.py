"""Every op of every program that makes the process on the destination goes wrong once: it runs on where it was, and
nothing is left there. There are hundreds, many of them alike: `make test` has one of each kind go wrong, and others at
random, `make test-ops` each of them."""

from __future__ import annotations

import os
import random
import re
import secrets
from collections.abc import Iterator, Sequence

import pytest

from tests.migration.journey import Journeys
from tests.migration.repeater import Attempt, Repeater, repeater
from tests.migration.scene import Scene, commit

GONE = re.compile(r"the restorer of restoree 1 has ended|the overseer (exited|was killed)")
NUMBER = re.compile(r"\b(0x)?[0-9a-f]*[0-9][0-9a-f]*\b")  # in labels: what tells apart ops that are alike
MORE = 20


class Ops:
    """A process, and a migration that can be tried again and again."""

    def __init__(self, scene: Scene, again: Repeater) -> None:
        self.scene, self._again = scene, again
        whole = again.attempt("halted:fail")
        assert whole.code == 5 and whole.error == "injected at halted", whole
        scene.untouched()
        # The last ops of the commit cannot be revoked, and what goes wrong there does not matter any more.
        program, revocable = commit(scene.journey.task.outer)
        self.count = len(whole.ops) - len(program) + revocable
        self._labels = whole.ops[: self.count]

    def some(self, seed: str) -> list[int]:
        """One of each kind, and ``MORE`` others."""
        draw = random.Random(seed)
        kinds: dict[str, list[int]] = {}
        for index, label in enumerate(self._labels):
            kinds.setdefault(NUMBER.sub("N", label), []).append(index)
        assert len(kinds) > 50, "this is not what a process is made of"
        chosen = {draw.choice(alike) for alike in kinds.values()}
        others = sorted(set(range(self.count)) - chosen)
        return sorted(chosen | set(draw.sample(others, min(MORE, len(others)))))

    def goes_wrong(self, index: int, action: str, *more: str) -> Attempt:
        """An AssertionError unless the op ends the migration and nothing else."""
        attempt = self._again.attempt(",".join([f"op:{index}:{action}", *more]))
        assert attempt.code == 5, (index, action, attempt)
        try:
            self.scene.untouched()
        except (AssertionError, TimeoutError) as error:
            raise AssertionError(f"op {index} {action} ({attempt.error}): {error}") from error
        return attempt


@pytest.fixture
def ops(journeys: Journeys) -> Iterator[Ops]:
    """Of the process that notices everything."""
    pair, journey = journeys.pair, journeys.start("undisturbed")
    with repeater(pair.a, journey.task.pid, pair.b) as again:
        made = Ops(Scene(pair, journey), again)
        yield made
        made.scene.passes()


def fail(ops: Ops, indices: Sequence[int]) -> None:
    """Each of these ops fails in a migration of its own."""
    pid = ops.scene.journey.task.pid
    said = set()
    for index in indices:
        error = ops.goes_wrong(index, "fail").error
        # The first ops of the new process are its own: that they failed shows in that it ended. A thread that cannot
        # park, as the last thing that it does, is not there when it is looked for.
        named = re.search(rf"(restoring|releasing) .* of pid {pid} on .*: \w+: ", error)
        assert (named and "not impl" in error) or GONE.search(error) or "seize thread" in error, (index, error)
        said.add(error)
    assert len(said) > len(indices) / 2, "sentences that tell one op from another"


@pytest.mark.timeout(300)
def test_an_op_of_each_kind_fails(ops: Ops) -> None:
    """$OPS_SEED repeats what was drawn."""
    seed = os.environ.get("OPS_SEED") or secrets.token_hex(4)
    indices = ops.some(seed)
    print(f"OPS_SEED={seed}: {len(indices)} of {ops.count} ops")
    fail(ops, indices)


@pytest.mark.every_op
@pytest.mark.timeout(900)
def test_every_op_fails(ops: Ops) -> None:
    fail(ops, range(ops.count))


@pytest.mark.timeout(300)
def test_the_restorer_dies_at_an_op(ops: Ops) -> None:
    for index in range(3, ops.count, ops.count // 25):
        assert ops.goes_wrong(index, "kill").error, index
