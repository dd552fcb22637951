"""A victim's way: started on node1, moved to node2, looked at before and after, told to look at itself, and asked."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests import moves, observe
from tests.driven import Driven, fresh_directory
from tests.hosts import NULL, Host, Pair, Stream
from tests.moves import Outcome
from tests.tasks import Task, wait_until
from tests.victims import Victims


@dataclass
class Journey(Driven):
    """One victim on a pair of hosts. ``task`` is the process where it is now."""

    pair: Pair
    task: Task
    outcomes: list[Outcome] = field(default_factory=list)
    env: Mapping[str, str] | None = None  # of the command that moves it

    def move(self, *options: str, ignore: Iterable[str] = (), look: bool = True) -> Outcome:
        """To node2; an AssertionError lists what is different there, by `observe`, but for ``ignore``."""
        before = observe.snapshot(self.task.outer) if look else {}
        try:
            self.task, outcome = moves.move(self.pair, self.task, *options, env=self.env)
        except ProcessLookupError as error:  # it has ended there by now
            raise AssertionError(f"{error}: {self.complaint}") from None
        self.outcomes.append(outcome)
        self.must_live()
        if look:
            different = observe.compare(before, observe.snapshot(self.task.outer), ignore)
            assert not different, "\n".join([f"{self.name} is not what it was:", *different])
        return outcome

    def turn(self) -> None:
        """The next move is to the other host."""
        self.pair = Pair(self.pair.b, self.pair.a, self.pair.directory)

    @property
    def maps(self) -> list[str]:
        """The lines of /proc/PID/maps."""
        return [" ".join(line.split()) for line in Path(f"/proc/{self.task.outer}/maps").read_text().splitlines()]

    def verdict(self, seconds: float = 20.0) -> str:
        """Wait for its end; an AssertionError says what it complained of. Returns what it said."""
        try:
            self.task.wait_gone(seconds)
        except TimeoutError:
            wchan = Path(f"/proc/{self.task.outer}/syscall").read_text()
            raise AssertionError(f"{self.name} gave no verdict; it is in {wchan}; {self.out!r} {self.err!r}") from None
        assert not self.err and self.out.endswith("pass\n"), self.complaint
        return self.out

    def must_live(self) -> None:
        """An AssertionError when it has ended."""
        assert self.task.alive, self.complaint

    def go(self, *options: str, ignore: Iterable[str] = ()) -> Outcome:
        """All of it: move, tell, verdict."""
        outcome = self.move(*options, ignore=ignore)
        self.tell()
        self.verdict()
        return outcome


@dataclass
class Journeys:
    """Starts victims on one pair of hosts."""

    pair: Pair
    victims: Victims

    def start(
        self, victim: str, *args: str, flags: Sequence[str] = (), env: Mapping[str, str] | None = None,
        wrap: Sequence[str] = (), cwd: str = "/", stdin: Stream | Path = NULL,
    ) -> Journey:
        """Start a victim and wait until it is ready. ``wrap``: a command that becomes it, such as setpriv(1)."""
        argv = [*wrap, self.victims(victim, *flags), *args]
        journey = self.run(victim, argv, env=env, cwd=cwd, stdin=stdin)
        try:
            wait_until(f"{victim} ready", lambda: "ready\n" in journey.out or not journey.task.alive)
        except TimeoutError as error:
            raise AssertionError(f"{error}: {journey.complaint}") from None
        journey.must_live()
        return journey

    def run(
        self, name: str, argv: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: str = "/",
        stdin: Stream | Path = NULL,
    ) -> Journey:
        """Start any program, its standard output and error in files of its own directory, which it finds in
        $VICTIM_DIR."""
        directory, own = fresh_directory(self.pair.directory)
        environment = {**own, **(env or {})}
        task = self.pair.a.spawn(
            argv, stdin=stdin, stdout=directory / "out", stderr=directory / "err", env=environment, cwd=cwd
        )
        return Journey(name, directory, self.pair, task)


def stop(task: Task, host: Host) -> None:
    """SIGSTOP, and wait until every thread stands still."""
    task.signal(signal.SIGSTOP)

    def still() -> bool:
        threads = Path(f"/proc/{task.outer}/task").iterdir()
        return all((t / "stat").read_text().rpartition(")")[2].split()[0] == "T" for t in threads)

    wait_until(f"{task!r} stopped on {host.name}", still)
