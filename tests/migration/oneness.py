"""After whatever went wrong in a commit, looked at from outside: exactly one copy of the process, and journals that
tell where."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from agents import journal, settling
from agents.journal import DESTINATION, SOURCE
from tests.hosts import Host
from tests.migration.scene import Stage, counted, states
from tests.tasks import status_field, wait_until

HERE, THERE = "here", "there"
_ENDS = {SOURCE: {journal.DONE: THERE, journal.ROLLED_BACK: HERE},
         DESTINATION: {journal.RELEASED: THERE, journal.ABORTED: HERE}}  # fmt: skip


def journals(host: Host) -> list[tuple[str, str]]:
    """Ids and roles on a host, the oldest first."""
    directory = host.state / "migrate" / "journal"
    found = [path.name.split(".") for path in sorted(directory.glob("*")) if path.suffix in (".source", ".destination")]
    return [(id, role) for id, role in found]


def states_of(host: Host, id: str, role: str) -> list[str]:
    """What a journal says, record by record."""
    path = host.state / "migrate" / "journal" / f"{id}.{role}"
    return [record.state for record in journal.parse(path.read_bytes(), str(path))[0]]


def copies_there(stage: Stage) -> list[int]:
    """Our numbers of what there is of the process on the destination, whatever its state."""
    name = stage.journey.name
    return [
        pid
        for pid in stage.pair.b.outer_pids()
        if " ".join(status_field(pid, "Name")).startswith(name) and status_field(pid, "State")[:1] not in ([], ["Z"])
    ]


@dataclass
class Doubted:
    """A stage whose migration has gone wrong somewhere in its commit."""

    stage: Stage

    @property
    def id(self) -> str:
        """Of the last migration."""
        return journals(self.stage.pair.a)[-1][0]

    def settle(self) -> str:
        """`migrate recover` for those whose command is dead; where the process is."""
        result = self.stage.recover()
        assert result.code == 0, result
        return self.one()

    def one(self) -> str:
        """An AssertionError unless exactly one copy of it is there and runs, and all that is told of it is true."""
        stage, task = self.stage, self.stage.journey.task
        there = copies_there(stage)
        where = HERE if task.alive else THERE
        assert len(there) == (0 if where == HERE else 1), f"{where}, and there {there}"
        outer = task.outer if where == HERE else there[0]
        wait_until("let go", lambda: status_field(outer, "TracerPid") == ["0"])
        wait_until("running", lambda: not states(outer) & {"T", "t"})
        if where == HERE:
            stage.untouched()
        else:
            stage.journey.task = stage.pair.b.adopt(stage.pair.b.inner_pid(outer))
            wait_until("nothing else there", lambda: len(stage.pair.b.pids()) == len(stage.there) + 1, 20)
        counted(stage.journey)
        self.told(where)
        return where

    def told(self, where: str) -> None:
        """The journals say so too, on both hosts, and to `migrate status`."""
        id, pair = self.id, self.stage.pair
        told = self.status()
        expected = settling.MOVED if where == THERE else settling.ROLLED_BACK
        assert {each["outcome"] for each in told} == {expected}, told
        for host, role in ((pair.a, SOURCE), (pair.b, DESTINATION)):
            if (id, role) in journals(host):
                last = states_of(host, id, role)[-1]
                assert _ENDS[role].get(last) == where, (where, role, states_of(host, id, role))
        assert not list(pair.b.state.rglob("*.socket")), "a socket is left"

    def status(self) -> Sequence[dict[str, Any]]:
        """Of the last migration, on both hosts."""
        pair = self.stage.pair
        result = self.stage.launcher.start("--json", "status", pair.b.destination).wait()
        assert result.code == 0, result
        return [each for each in json.loads(result.out) if each["id"] == self.id]

