"""What the source agent does, verb by verb. The coordinator tells the story; see migrate/coordinator.py.

A process moves with all its descendants: `Roster` is the tree, `Member` one process of it, known by its id. What is
about one of them has a verb that is told which; what is about all of them (stop, rehearse, freeze, kill) is done to
all, in that order, or to none.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from migrate import faults
from migrate.engine import aftercare, leftover
from migrate.engine.dump import Dumper, Stopped
from migrate.engine.image.codec import decode, encode
from migrate.engine.kinds import locks
from migrate.engine.letters import with_letters
from migrate.engine.member import Answer, Member
from migrate.engine.preview import Layout
from migrate.engine.process import ProcessImage
from migrate.engine.roster import Roster, SendMemberPages
from migrate.engine.sharing import Sharing
from migrate.engine.tracee.instep import in_step
from migrate.engine.undo import undos_of
from migrate.errors import Failed, Passing, Problem, Refused

_ROOM = 32 << 20  # bytes of images in one answer
_PAUSES = (0.003, 0.01, 0.03, 0.1, 0.3)  # seconds between tries


class Source:
    """A tree of processes on its way. Verbs are the methods ``do_…``: arguments of the request in, fields and blob
    out."""

    def __init__(self, send_pages: SendMemberPages) -> None:
        self._send_pages = send_pages
        self._roster: Roster | None = None
        self._images: dict[int, bytes] = {}
        self._held: dict[int, tuple[locks.Lock, ...]] = {}
        self._names: dict[str, tuple[int, int]] = {}  # of shared memory
        self._killed = self._committing = False

    @property
    def _tree(self) -> Roster:
        if self._roster is None:
            raise Failed("no process has been named yet")
        return self._roster

    # Before

    def do_inspect(self, pid: int) -> Answer:
        """Everything that can be seen without touching them; the blob is about the first. ``ids``: of all of them.
        Refused when one of them cannot even be looked at."""
        if self._roster is not None:  # once more
            self._roster.close()
        self._roster = Roster(pid, self._send_pages)
        return {"ids": self._roster.ids, "memory": self._roster.memory()}, self.do_preview(0)[1]

    def do_preview(self, member: int) -> Answer:
        """What `do_inspect` tells about the first."""
        roster = self._tree
        one = roster.members[member]
        preview = one.preview or one.inspect(roster.tree[roster.ids.index(member)])
        if not member:
            ipc, problems = roster.read_ipc(False, roster.tables)
            preview = replace(preview, ipc=ipc, problems=(*preview.problems, *roster.unseen(), *problems))
        return {}, encode(preview)

    def do_lineup(self, follow: bool = False) -> Answer:
        """Who there is, and what has changed since the last call. ``follow``: look; else as of the last rehearsal or
        freeze."""
        roster = self._tree
        if follow:
            roster.follow()
        change = roster.tell()
        born, gone, renewed = sorted(change.born), sorted(change.gone), sorted(change.renewed)
        told = {"changed": bool(change), "born": born, "gone": gone, "renewed": renewed, "left": change.left}
        return told, encode(roster.lineup())

    # Rounds

    def do_track(self, tracker: str, compress: str, bandwidth: float | None) -> Answer:
        """Begin to track writes. ``bandwidth``: the most bytes per second to send, or None."""
        roster, how = self._tree, (tracker, compress, bandwidth)
        roster.hold(lambda member: member.dumper.stop())
        try:
            answers = [member.track(*how, held=True)[0] for member in roster.all]
            roster.tracking = how
        finally:
            roster.let_go()
        rejected = list(dict.fromkeys(reason for answer in answers for reason in answer["rejected"]))
        return {"tracker": answers[0]["tracker"], "rejected": rejected}, b""

    def do_look(self, member: int = 0, begotten: bool = False) -> Answer:
        """See `Member.look`. Of one that has ended meanwhile, or is another program by now: what it was. ``begotten``:
        its restoree has been, just now (`Roster.maker`)."""
        roster = self._tree
        if member not in roster.members:
            return {"pages": 0}, encode(Layout((), ()))
        if member == 0:
            roster.find_common()
        one = roster.members[member]
        maker = roster.maker(member) if begotten else None
        return self._unless_changed(member, lambda: one.look(maker), one.layout)

    def do_inherit(self, members: list[int]) -> Answer:
        """After the first look at these: what their restorees have from those that made them need not be sent.
        ``pages``: how many are left."""
        roster = self._tree
        children: dict[Member, list[Member]] = {}
        for id in members:
            if not roster.has_changed(id) and roster.members[id].landlord is None:
                children.setdefault(roster.maker(id), []).append(roster.members[id])
        for parent, born in children.items():
            if roster.is_changed(parent):
                continue
            try:
                shared = parent.shared_with(born)
            except (Failed, OSError):
                if not any(map(roster.is_changed, (parent, *born))):
                    raise
                continue
            # If it is another program by now, it is not that which was looked at and sent.
            if not roster.is_changed(parent):
                for child, pages in zip(born, shared, strict=True):
                    child.has_got(pages)
        return {"pages": sum(roster.members[id].due for id in members)}, b""

    def do_send(self, remapped: list[list[int]], member: int = 0) -> Answer:
        """See `Member.send`."""
        if member not in self._tree.members:
            return {"pages": 0}, b""
        one = self._tree.members[member]
        return self._unless_changed(member, lambda: one.send(remapped), lambda: ({"pages": 0}, b""))

    def _unless_changed(self, member: int, act: Callable[[], Answer], else_: Callable[[], Answer]) -> Answer:
        roster = self._tree
        if not roster.several:
            return act()
        if member and roster.has_changed(member):
            return else_()
        try:
            return act()
        except (Refused, Failed, OSError):
            if member and roster.has_changed(member):
                return else_()
            raise

    def do_rehearse(self) -> Answer:
        """The image of the processes as it would be now. Finds what shows only from inside, and warms every path. The
        blob is of the first; the others by `do_images`."""
        return self._patiently(self._rehearse)

    def _rehearse(self) -> Answer:
        roster, begun = self._tree, time.monotonic()
        roster.hold(lambda member: member.dumper.stop_outside())
        try:
            images = self._collect(frozen=False)
        finally:
            roster.let_go()
        self._write(images)
        return {"seconds": begun, "changed_kin": bool(roster.change)}, self._images[0]

    def do_images(self, members: list[int]) -> Answer:
        """Of these, of the last rehearsal or freeze: of as many of them as one answer has room for. ``sizes``: bytes of
        each in the blob; ``changed``: whose layout is not that of the last look."""
        found: list[bytes] = []
        for id in members:
            if found and sum(map(len, found)) + len(self._images[id]) > _ROOM:
                break
            found.append(self._images[id])
        changed = [self._tree.members[id].changed() for id in members[: len(found)]]
        return {"sizes": [len(image) for image in found], "changed": changed}, b"".join(found)

    # The freeze

    def do_freeze(self) -> Answer:
        """Stop them for good. ``send_last`` looks for the last time and sends, while the coordinator compiles.
        ``changed``: the layout of the first is not that of the last look. Times in seconds; ``begun`` is of
        CLOCK_MONOTONIC."""
        return self._patiently(self._freeze)

    def _freeze(self) -> Answer:
        gc.disable()
        times: list[Stopped] = []
        roster = self._tree
        try:
            roster.hold(lambda member: times.append(member.freeze()))
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
        begun = roster.held_since if roster.several else times[0].begun
        return {
            "begun": begun,
            "stop": stopped - begun - looking - leaving,
            "vdso": leaving,
            "collect": collected - stopped + looking,
            "changed": roster.members[0].changed(),
            "changed_kin": bool(roster.change),
        }, self._images[0]

    def _patiently(self, attempt: Callable[[], Answer]) -> Answer:
        """What is refused for the moment only is tried again, a few times: they run on in between."""
        for pause in _PAUSES:
            try:
                return attempt()
            except Refused as refusal:
                if not all(isinstance(problem, Passing) for problem in refusal.problems):
                    raise
            time.sleep(pause)
        return attempt()

    def _collect(self, frozen: bool) -> list[ProcessImage]:
        """The images of all of them, which stand still. Refused with what cannot be moved, of any."""
        roster = self._tree
        dumpers = [member.dumper for member in roster.all]
        for dumper in dumpers:
            dumper.see_memory(frozen)
        roster.check()
        roster.find_common()
        roster.read_files(frozen)
        images, problems = self._imaged(dumpers, frozen)
        ipc, more = roster.read_ipc(frozen, [image.descriptors for image in images])
        undos, odd = undos_of(dumpers, ipc.sets, Sharing(roster.tree))
        if problems := [*problems, *roster.unseen(), *more, *odd]:
            raise Refused(problems)
        images = [with_letters(dumper, image) for dumper, image in zip(dumpers, images, strict=True)]
        images = [replace(image, undos=its) for image, its in zip(images, undos, strict=True)] if undos else images
        images[0] = replace(images[0], ipc=ipc)
        self._names = leftover.names(images)
        return images

    def _imaged(self, dumpers: Sequence[Dumper], frozen: bool) -> tuple[list[ProcessImage], list[Problem]]:
        """Of those that can be moved, and why the others cannot."""
        found: dict[int, ProcessImage] = {}
        problems: list[Problem] = []
        for turn in self._turns():
            making = [dumpers[position].imaging(frozen, self._tree.tree[position]) for position in turn]
            for position, image in zip(turn, in_step(making), strict=True):
                if isinstance(image, Refused):
                    problems += image.problems
                else:
                    found[position] = image
        return [found[position] for position in sorted(found)], problems

    def _turns(self) -> list[list[int]]:
        """Positions of all, those first that share their memory with none before them: what is put into one address
        space at a time is put there for one process."""
        turns: list[list[int]] = []
        before: dict[Member, int] = {}
        for position, member in enumerate(self._tree.all):
            owner = member.landlord or member
            turn = before[owner] = before.get(owner, -1) + 1
            turns += [[]] * (turn == len(turns))
            turns[turn] = [*turns[turn], position]
        return turns

    def _write(self, images: Sequence[ProcessImage]) -> None:
        roster = self._tree
        self._images = {id: roster.members[id].write(image) for id, image in zip(roster.ids, images, strict=True)}
        self._held = {id: image.descriptors.locks for id, image in zip(roster.ids, images, strict=True)}

    def do_last_look(self, member: int = 0) -> Answer:
        """See `Member.last_look`."""
        return self._tree.members[member].last_look()

    def do_send_last(self, remapped: list[list[list[int]]], members: list[int], looked: bool = False) -> Answer:
        """See `Member.send_last`: ``answers`` for each of these, and ``sizes`` of what the blob has of them."""
        answers, blobs = [], []
        for id, ranges in zip(members, remapped, strict=True):
            answer, blob = self._tree.members[id].send_last(ranges, looked)
            answers.append(answer)
            blobs.append(blob)
        return {"answers": answers, "sizes": [len(blob) for blob in blobs]}, b"".join(blobs)

    def do_unlock(self) -> Answer:
        """Release the locks of the stopped processes, so that their successors can take them."""
        for id, held in self._held.items():
            if held:
                self._tree.members[id].unlock(held)
        faults.hit("source-unlocked")
        return {}, b""

    def do_resume(self) -> Answer:
        """Let them go on here as if nothing had happened. Whatever fails, all of it is tried."""
        self._committing = False
        gc.enable()
        if self._roster is not None:
            self._roster.let_go()
        return {}, b""

    def do_commit(self) -> Answer:
        """The decision is the destination's now. When we end, however, the processes stay stopped: a SIGSTOP waits for
        each, which nothing but SIGCONT and SIGKILL undoes (signal(7)). One that is stopped already stays so without."""
        for member in self._tree.all:
            member.halt()
        self._committing = True
        faults.hit("source-halted")
        return {}, b""

    def do_kill(self) -> Answer:
        """The destination has them: these copies end, without having run again."""
        self._killed = True
        for member in self._tree.all:
            member.kill()
        faults.hit("source-killed")
        return {}, b""

    def do_reap(self) -> Answer:
        """Wait until the killed copies are gone; then what they had by a name goes, too. ``left``: what could not be
        removed, in words."""
        for member in self._tree.all:
            member.reap()
        left = []
        for remove in (self._tree.ipc.remove, lambda: leftover.remove(self._names)):
            try:
                remove()
            except (Failed, OSError) as error:
                left.append(f"what has moved is left here: {error}")
        return {"left": left}, b""

    def do_cure(self, pid: int, halted: bool, start: int | None = None, blob: bytes = b"") -> Answer:
        """See `aftercare.cure`. ``blob``: the locks."""
        return {"freed": aftercare.cure(pid, halted, start, decode(locks.Held, blob).locks if blob else ())}, b""

    def do_end(self, pid: int, start: int | None = None) -> Answer:
        """See `aftercare.end`."""
        aftercare.end(pid, start)
        return {}, b""

    def do_people(self) -> Answer:
        """Who moves: number and time of start of each (`agents.settling.person`)."""
        return {"people": self._tree.people()}, b""

    def close(self) -> None:
        """Leave no trace. Whatever fails, all of it is tried."""
        gc.enable()
        roster, self._roster = self._roster, None
        if roster is not None:
            roster.close()
