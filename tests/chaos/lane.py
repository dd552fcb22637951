"""Two hosts between which one process goes back and forth, whatever goes wrong."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from agents.journal import DESTINATION, SOURCE
from tests import hosts as bed
from tests import observe
from tests.chaos import trip
from tests.chaos.catalogue import Node, Scene
from tests.chaos.plan import WEIGHTS, Plan
from tests.chaos.resources import Disk, limits
from tests.chaos.trip import LEASE, Broken, Told
from tests.chaos.verdict import Counted, Usual, Whole, copies, eventually, released, truthful
from tests.hosts import Host, Pair
from tests.migration.launcher import Launcher, Run, launcher
from tests.tasks import Task, wait_until
from tests.victims import Victims

SILENCE = 75.0  # seconds until an agent that hears nothing has gone, and its sshd (agents/overseer.py, LEASE)
_FIRST = 0.8  # seconds that a move takes, as long as that is not known

MOVED, BACK, DOUBT_MOVED, DOUBT_BACK, UNDECIDABLE, ENDED = (
    *("moved", "rolled back", "settled: moved", "settled: rolled back", "undecidable, forced"),
    "killed after it had moved",
)
OUTCOMES = (MOVED, BACK, DOUBT_MOVED, DOUBT_BACK, UNDECIDABLE, ENDED)


@dataclass
class Side:
    """One of the two hosts, what starts commands there, and what it looks like when nothing is moved."""

    node: Node
    launcher: Launcher
    usual: Usual

    @property
    def host(self) -> Host:
        return self.node.host

    def make_ready(self) -> None:
        """What sshd starts is what is limited; it may be another one by now."""
        wait_until("sshd is there", lambda: bed.listens(self.host))
        for limit in self.node.limits.values():
            limit.put_in(self.node.listener)


@dataclass
class Lane:
    """``here``: where the process is."""

    pair: Pair
    here: Side
    there: Side
    program: str
    traveller: Traveller = field(init=False)
    usual: float = _FIRST
    killed: int = 0  # for want of memory, there, before this move
    _travellers: int = 0

    def __post_init__(self) -> None:
        self.renew()

    @property
    def kinds(self) -> tuple[str, ...]:
        """The disasters that can be had here."""
        lacking = {"no memory": "memory", "no PIDs": "pids"}
        return tuple(kind for kind in WEIGHTS if kind not in lacking or lacking[kind] in self.here.node.limits)

    def renew(self) -> None:
        """Another process, on the first host or where the last one was."""
        self._travellers += 1
        self.traveller = Traveller.start(self.pair, self.here.host, self.program, self._travellers)

    def move(self, plan: Plan) -> tuple[list[str], str]:
        """One move: the kinds of disasters that hit it, and the outcome. An AssertionError says what is broken."""
        here, there, traveller = self.here, self.there, self.traveller
        for side in (here, there):
            side.make_ready()
        self.killed = _killed(there)
        argv = str(traveller.task.pid), there.host.destination

        def scene(run: Run) -> Scene:
            return Scene(run, here.node, there.node)

        told = trip.take(here.launcher, self.pair.directory, argv, plan, scene, self.usual)
        try:
            outcome = Aftermath(self, plan, told).outcome()
        except Exception as error:
            what = f"{error!r}\n  hit by {told.struck}; {told.result}\n  recovered: {told.recovered}"
            raise Broken(f"{what}\n  the process: {traveller.said()}") from error
        if not told.struck:
            self.usual = 0.7 * self.usual + 0.3 * told.result.seconds
        return told.struck, outcome

    def finish(self) -> None:
        """The process is asked."""
        self.traveller.verdict()


@dataclass
class Traveller:
    """The process, and how it was in the beginning."""

    task: Task
    directory: Path
    counted: Counted
    whole: Whole
    name: str

    @classmethod
    def start(cls, pair: Pair, host: Host, program: str, number: int) -> Traveller:
        """On a host; once it is ready."""
        directory = pair.directory / f"traveller-{number}"
        directory.mkdir()
        places = {"VICTIM_GO": directory / "go", "VICTIM_DIR": directory, "VICTIM_DISK": pair.directory / "disk"}
        env = {name: str(path) for name, path in places.items()}
        task = host.spawn([program], stdout=directory / "out", stderr=directory / "err", env=env)
        wait_until("the process ready", lambda: (directory / "out").read_text() == "ready\n" or not task.alive)
        counted = Counted(directory / "count")
        counted.goes_on()
        return cls(task, directory, counted, Whole(directory, observe.snapshot(task.outer)), Path(program).name[:15])

    def said(self) -> tuple[str, ...]:
        """On its standard output, and on standard error."""
        return tuple((self.directory / name).read_text() for name in ("out", "err"))

    def interrupted(self) -> bool:
        """Whether a system call has ended with EINTR since the last time that this was asked."""
        try:
            (self.directory / "interrupted").unlink()
        except FileNotFoundError:
            return False
        return True

    def verdict(self) -> None:
        """At its end it says itself that it has noticed nothing."""
        (self.directory / "go").touch()
        self.task.wait_gone()
        said, complained = self.said()
        if not said.endswith("pass\n") or complained:
            raise Broken(f"it said {said!r}, and complained: {complained!r}")
        self.counted.read()


@dataclass
class Aftermath:
    """What is looked at after a move."""

    lane: Lane
    plan: Plan
    told: Told

    def outcome(self) -> str:
        """Broken unless everything is as it must be."""
        lane, code = self.lane, self.told.result.code
        here, there, traveller = lane.here, lane.there, lane.traveller
        self._said()
        left = [copies(side.host, traveller.name) for side in (here, there)]
        settled = bool(self.told.recovered)
        if left == [[], []] and self._killed_there():
            self._rest(None)
            lane.here, lane.there = there, here
            lane.renew()
            return ENDED
        if sorted(map(len, left)) != [0, 1]:
            raise Broken(f"copies: {left[0]} on {here.host.name}, {left[1]} on {there.host.name}")
        moved = not left[0]
        (outer,) = left[0] or left[1]
        if code == 0 and not moved or code in (3, 4, 5, 130) and moved:
            raise Broken(f"exit code {code}, and the process is on {(there if moved else here).host.name}")
        traveller.whole.check(outer)
        traveller.counted.goes_on()
        if traveller.interrupted() and "source agent" not in self.told.struck:
            raise Broken("a stop has made a system call end with EINTR")
        if moved:
            traveller.task.close()
            here.host.tasks.remove(traveller.task)
            traveller.task = there.host.adopt(there.host.inner_pid(outer))
            lane.here, lane.there = there, here
        elif outer != traveller.task.outer:
            raise Broken(f"process {outer} is another one than {traveller.task.outer}")
        self._rest(outer, moved)
        if self.told.undecidable:
            return UNDECIDABLE
        if settled:
            return DOUBT_MOVED if moved else DOUBT_BACK
        return MOVED if moved else BACK

    def _said(self) -> None:
        """The command knows how it ended."""
        result = self.told.result
        if result.code not in (0, 3, 4, 5, 6, trip.KILLED) or "Traceback" in result.err or "escaped" in result.err:
            raise Broken("the command did not end as it should")
        if result.code == trip.KILLED and "coordinator" not in self.told.struck:
            raise Broken("nobody has killed the command")
        if "unexpected" in result.err:
            raise Broken("the command has met what nobody has thought of")

    def _killed_there(self) -> bool:
        """Memory was to be exhausted there, and the process took part in that after it had been let go."""
        there = self.lane.there
        return "no memory" in self.told.struck and _killed(there) > self.lane.killed and released(there.node)

    def _rest(self, outer: int | None, moved: bool = True) -> None:
        """Nothing else is left, and the journals are right; ``outer``: the process, if there is one."""
        source, destination = (self.lane.there, self.lane.here) if moved else (self.lane.here, self.lane.there)
        for side, role in ((source, SOURCE), (destination, DESTINATION)):
            own = outer if outer in side.host.outer_pids() else None
            eventually("left over", partial(self._left, side, own), SILENCE if self.plan.cuts else LEASE + 10)
            if wrong := truthful(trip.status(side.launcher), role, moved):
                raise Broken(f"a journal lies: {wrong}")
            shutil.rmtree(side.node.journals.path / "migrate" / "journal", ignore_errors=True)

    def _left(self, side: Side, own: int | None) -> str:
        if found := side.usual.left(own):
            trip.status(side.launcher)  # who asks tidies up what those have left who were killed
        return found


def _killed(side: Side) -> int:
    """How many processes were killed there for want of memory, ever."""
    return side.node.limits["memory"].killed if "memory" in side.node.limits else 0


@contextmanager
def made(name: str, victims: Victims, shift: int = 0) -> Iterator[Lane]:
    """Two hosts, the clocks of the second one ``shift`` seconds ahead, and the process. ``name``: of control groups."""
    with ExitStack() as stack:
        groups = [stack.enter_context(limits(f"{name}-node{number}")) for number in (1, 2)]
        pair = stack.enter_context(bed.two_hosts(shift=shift))
        stack.callback(pair.finish)
        sides = []
        for host, limited in zip((pair.a, pair.b), groups, strict=True):
            journals = Disk(host, host.directory / "state")
            disks = Disk(host, host.directory / "cache"), Disk(host, pair.directory / "disk")
            runs = host.directory / "runs"
            runs.mkdir()
            starts = stack.enter_context(launcher(host, runs))
            node = Node(host, journals, disks, limited)
            sides.append(Side(node, starts, Usual(node, set(host.outer_pids()) - {node.listener})))
        yield Lane(pair, sides[0], sides[1], victims("endures"))
