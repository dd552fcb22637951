"""What the source agent does, verb by verb. The coordinator tells the story; see migrate/coordinator.py.

A process moves with all its descendants: `Source` is the tree, `Member` one process of it, known by its position. What
is about one of them has a verb that is told which; what is about all of them (stop, rehearse, freeze, kill) is done to
all, in that order, or to none.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence

from migrate import faults
from migrate.engine import aftercare, kin
from migrate.engine.dump import Dumper
from migrate.engine.image.codec import decode, encode
from migrate.engine.kernel.maps import proportional
from migrate.engine.kernel.stat import stat
from migrate.engine.kernel.status import status
from migrate.engine.kin import Kin
from migrate.engine.kinds import common, locks
from migrate.engine.kinds.family import Family
from migrate.engine.member import Answer, Member, SendPages
from migrate.engine.process import ProcessImage
from migrate.engine.tracee.inspection import why_not_traceable
from migrate.errors import Failed, KinChanged, Refused

SendMemberPages = Callable[[int, int, bytes, memoryview], None]  # position of the member, flags, meta, contents


class Source:
    """A tree of processes on its way. Verbs are the methods ``do_…``: arguments of the request in, fields and blob
    out."""

    def __init__(self, send_pages: SendMemberPages) -> None:
        self._send_pages = send_pages
        self._members: list[Member] = []
        self._tree: list[Kin] = []
        self._images: list[bytes] = []
        self._held: list[tuple[locks.Lock, ...]] = []
        self._family: Family | None = None
        self._killed = self._committing = False
        self._several = False  # processes, if only dead ones

    # Before

    def do_inspect(self, pid: int) -> Answer:
        """Everything that can be seen without touching them; the blob is about the first. ``members``: how many there
        are. Refused when one of them cannot even be looked at."""
        if problems := why_not_traceable(pid):
            raise Refused(problems)
        pids = kin.descendants(pid)
        if problems := [problem for each in pids[1:] for problem in why_not_traceable(each)]:
            raise Refused(problems)
        family = frozenset(pids)
        for each in pids:
            self._members.append(Member(each, self._pages_of(len(self._members)), family))
        processes = [member.dumper.proc for member in self._members]
        self._tree = [kin.kin_of(proc, pids) for proc in processes]
        self._several = len(pids) > 1 or bool(self._tree[0].zombies)
        for member in self._members:
            member.dumper.follows = self._several
        if self._several and (problems := kin.problems(processes, self._tree)):
            raise Refused(problems)
        if len(pids) > 1:
            self._family = Family([member.dumper.files for member in self._members])
            for member in self._members:
                member.dumper.spaces.read()
            self._find_common()
            self._read_files(frozen=False)
        return {"members": len(pids), "memory": self._memory()}, self.do_preview(0)[1]

    def _memory(self) -> int:
        """Bytes that all of them have in memory, at least; what they share is counted once."""
        processes = [member.dumper.proc for member in self._members]
        resident = [status(proc.text("status")).vm.get("VmRSS", 0) for proc in processes]
        shares = sum(proportional(proc.text("smaps_rollup")) for proc in processes) if len(processes) > 1 else 0
        return max(shares, *resident) << 10

    def do_preview(self, member: int) -> Answer:
        """What `do_inspect` tells about the first."""
        return {}, encode(self._members[member].inspect(self._tree[member]))

    def _pages_of(self, position: int) -> SendPages:
        return lambda flags, meta, contents: self._send_pages(position, flags, meta, contents)

    def _find_common(self) -> None:
        """Shared memory that several of them have mapped, and who sends it."""
        if len(self._members) == 1:
            return
        spaces = [member.dumper.spaces for member in self._members]
        shared = common.objects([space.vmas for space in spaces])
        for member in self._members:
            member.dumper.know_common(shared)
        for member, elsewhere in zip(self._members, common.elsewhere([space.vmas for space in spaces]), strict=True):
            member.elsewhere = elsewhere

    def _read_files(self, frozen: bool) -> None:
        """The descriptors of all of them at once, for they share some."""
        if self._family is not None:
            tables = self._family.dump(frozen, [member.dumper.spaces.vmas for member in self._members])
            for member, table in zip(self._members, tables, strict=True):
                member.dumper.table = table

    # Rounds

    def do_track(self, tracker: str, compress: str, bandwidth: float | None) -> Answer:
        """Begin to track writes. ``bandwidth``: the most bytes per second to send, or None."""
        answers = [member.track(tracker, compress, bandwidth)[0] for member in self._members]
        rejected = list(dict.fromkeys(reason for answer in answers for reason in answer["rejected"]))
        return {"tracker": answers[0]["tracker"], "rejected": rejected}, b""

    def do_look(self, member: int = 0, begotten: bool = False) -> Answer:
        """See `Member.look`. ``begotten``: the restoree has been, just now, by its parent's."""
        if member == 0:
            self._find_common()
        parent = self._members[self._tree[member].parent] if begotten else None
        return self._members[member].look(parent)

    def do_inherit(self, members: list[int]) -> Answer:
        """After the first look at these: what their restorees have from their parents' need not be sent. ``pages``: how
        many are left."""
        members_of: dict[int, list[Member]] = {}
        for position in members:
            members_of.setdefault(self._tree[position].parent, []).append(self._members[position])
        for parent, children in members_of.items():
            self._members[parent].bequeath(children)
        return {"pages": sum(self._members[position].due for position in members)}, b""

    def do_send(self, remapped: list[list[int]], member: int = 0) -> Answer:
        """See `Member.send`."""
        return self._members[member].send(remapped)

    def do_rehearse(self) -> Answer:
        """The image of the processes as it would be now. Finds what shows only from inside, and warms every path. The
        blob is of the first; the others by `do_image`."""
        dumpers = self._dumpers()
        stopped: list[Dumper] = []
        try:
            for dumper in dumpers:
                begun = dumper.stop_outside().begun
                stopped.append(dumper)
            images = self._collect(frozen=False)
        finally:
            for dumper in stopped:
                dumper.resume()
        self._write(images)
        return {"seconds": begun}, self._images[0]

    def do_image(self, member: int) -> Answer:
        """Of another one, of the last rehearsal or freeze."""
        return {"changed": self._members[member].changed()}, self._images[member]

    # The freeze

    def do_freeze(self) -> Answer:
        """Stop them for good. ``send_last`` looks for the last time and sends, while the coordinator compiles.
        ``changed``: the layout of the first is not that of the last look. Times in seconds; ``begun`` is of
        CLOCK_MONOTONIC."""
        gc.disable()
        times = []
        try:
            for member in self._members:
                times.append(member.freeze())
            stopped = time.monotonic()
            faults.hit("source-stopped")
            images = self._collect(frozen=True)
            collected = time.monotonic()
            faults.hit("source-collected")
            self._write(images)
        except BaseException:
            self.do_resume()
            raise
        looking, leaving = sum(each.looking for each in times), sum(each.leaving for each in times)
        return {
            "begun": times[0].begun,
            "stop": stopped - times[0].begun - looking - leaving,
            "vdso": leaving,
            "collect": collected - stopped + looking,
            "changed": self._members[0].changed(),
        }, self._images[0]

    def _dumpers(self) -> list[Dumper]:
        if not self._members:
            raise Failed("no process has been named yet")
        return [member.dumper for member in self._members]

    def _collect(self, frozen: bool) -> list[ProcessImage]:
        """The images of all of them, which stand still. Refused with what cannot be moved, of any."""
        dumpers = self._dumpers()
        for dumper in dumpers:
            dumper.see_memory(frozen)
        if self._several:
            self._check_kin()
        elif not frozen:
            self._check_members()
        if len(dumpers) > 1:
            self._find_common()
            self._read_files(frozen)
        images, problems = [], []
        for dumper, each in zip(dumpers, self._tree, strict=True):
            try:
                images.append(dumper.image(frozen, each))
            except Refused as refusal:
                problems += refusal.problems
        if problems:
            raise Refused(problems)
        return images

    def _check_members(self) -> None:
        """Whether they are still the same as when they were made on the destination."""
        pids = [member.pid for member in self._members]
        found = kin.descendants(pids[0])
        if born := set(found) - set(pids):
            raise KinChanged(f"process {min(born)} has joined the tree of process {pids[0]} meanwhile")
        if gone := set(pids) - set(found):
            raise KinChanged(f"process {min(gone)} has left the tree of process {pids[0]} meanwhile")

    def _check_kin(self) -> None:
        """And whether they are to each other what they were."""
        self._check_members()
        pids = [member.pid for member in self._members]
        tree = [kin.kin_of(member.dumper.proc, pids) for member in self._members]
        for before, now in zip(self._tree, tree, strict=True):
            if (before.parent, before.session) != (now.parent, now.session):
                raise KinChanged(f"process {now.pid} has another parent or session by now")
        if problems := kin.standing(tree):
            raise Refused(problems)
        self._tree = tree

    def _write(self, images: Sequence[ProcessImage]) -> None:
        self._images = [member.write(image) for member, image in zip(self._members, images, strict=True)]
        self._held = [image.descriptors.locks for image in images]

    def do_send_last(self, remapped: list[list[int]], member: int = 0) -> Answer:
        """See `Member.send_last`."""
        return self._members[member].send_last(remapped)

    def do_unlock(self) -> Answer:
        """Release the locks of the stopped processes, so that their successors can take them."""
        for member, held in zip(self._members, self._held, strict=True):
            if held:
                member.unlock(held)
        faults.hit("source-unlocked")
        return {}, b""

    def do_resume(self) -> Answer:
        """Let them go on here as if nothing had happened. Whatever fails, all of it is tried."""
        self._committing = False
        gc.enable()
        failure: BaseException | None = None
        for member in reversed(self._members):
            try:
                member.resume()
            except Exception as error:
                failure = failure or error
        if failure is not None:
            raise failure
        return {}, b""

    def do_commit(self) -> Answer:
        """The decision is the destination's now. When we end, however, the processes stay stopped: a SIGSTOP waits for
        each, which nothing but SIGCONT and SIGKILL undoes (signal(7)). One that is stopped already stays so without."""
        for member in self._members:
            member.halt()
        self._committing = True
        faults.hit("source-halted")
        return {}, b""

    def do_kill(self) -> Answer:
        """The destination has them: these copies end, without having run again."""
        self._killed = True
        for member in self._members:
            member.kill()
        faults.hit("source-killed")
        return {}, b""

    def do_reap(self) -> Answer:
        """Wait until the killed copies are gone."""
        for member in self._members:
            member.reap()
        return {}, b""

    def do_cure(self, pid: int, halted: bool, start: int | None = None, blob: bytes = b"") -> Answer:
        """See `aftercare.cure`. ``blob``: the locks."""
        return {"freed": aftercare.cure(pid, halted, start, decode(locks.Held, blob).locks if blob else ())}, b""

    def do_end(self, pid: int, start: int | None = None) -> Answer:
        """See `aftercare.end`."""
        aftercare.end(pid, start)
        return {}, b""

    def do_people(self) -> Answer:
        """Who moves: number and time of start of each (`agents.settling.person`)."""
        people = []
        for member in self._members:
            people.append([member.pid, stat(member.dumper.proc.text("stat")).starttime])
        return {"people": people}, b""

    def close(self) -> None:
        """Leave no trace. Whatever fails, all of it is tried."""
        gc.enable()
        members, self._members = self._members, []
        failure: BaseException | None = None
        for member in reversed(members):
            try:
                member.close()
            except Exception as error:
                failure = failure or error
        if failure is not None:
            raise failure

