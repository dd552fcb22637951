"""`migrate show`: what a checkpoint holds, as tables or as an object. Page contents are not read."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

from migrate.checkpoint.directory import Opened, found_at, is_whole, opened, read_manifest
from migrate.checkpoint.format import PAGE, Extent, Saved, extents
from migrate.checkpoint.target import age
from migrate.engine.kinds.descriptors import Handle
from migrate.engine.kinds.vma import VMA
from migrate.report import subject
from migrate.wording import count, printable, size

Row = Sequence[str]


def show(path: str, as_json: bool) -> str:
    """What is at a path: a checkpoint, or a series and the last one of it."""
    place, series = found_at(path)
    with opened(place) as found:
        told = describe(found)
    told["series"] = [_member(os.path.join(os.path.dirname(place), name)) for name in series]
    return json.dumps(told) if as_json else "\n".join(_text(told))


def describe(found: Opened) -> dict[str, Any]:
    """All that is shown, as plain values. Sizes in bytes."""
    checkpoint, manifest = found.checkpoint, found.manifest
    sizes = {name: file.size for name, file in manifest.files.items()}
    return {
        "path": found.path,
        "taken": checkpoint.taken,
        "host": checkpoint.host.node,
        "kernel": checkpoint.host.release,
        "files": sizes,
        "ancestors": list(manifest.ancestors),
        "processes": [_process(saved, index, found.sizes) for index, saved in enumerate(checkpoint.processes)],
    }


def _process(saved: Saved, index: int, sizes: tuple[int, ...]) -> dict[str, Any]:
    preview, image = saved.preview, saved.image
    places = list(extents(saved, index, sizes))
    table = image.descriptors
    return {
        "pid": preview.pid,
        "comm": preview.comm,
        "exe": image.mm.exe,
        "cwd": image.fs.cwd,
        "session": image.process.session,
        "stopped": image.process.stopped,
        "uid": image.threads[0].state.credentials.uids[0],
        "gid": image.threads[0].state.credentials.gids[0],
        "threads": [{"tid": thread.tid, "name": thread.state.identity.name} for thread in image.threads],
        "pages": sum(extent.pages for extent in places),
        "own_pages": sum(extent.pages for extent in places if not extent.file),
        "vmas": [_area(vma, places) for vma in image.vmas],
        "descriptors": [
            {
                "number": descriptor.number,
                "kind": _kind(table.descriptions[descriptor.description].state, table.objects),
                "link": table.descriptions[descriptor.description].link,
                "flags": table.descriptions[descriptor.description].flags,
                "cloexec": descriptor.cloexec,
            }
            for descriptor in table.descriptors
        ],
        "locks": [lock.label for lock in table.locks],
    }


def _kind(state: object, objects: Sequence[object]) -> str:
    """In a word: ``regular``, ``pipe``, ``standard stream``."""
    named = objects[state.object] if isinstance(state, Handle) else state
    words = {"StandardStream": "standard stream", "DeletedFile": "deleted file", "PlaceOnly": "path",
             "NamedMemory": "shared memory", "UnixPair": "unix socket", "UnixSocket": "unix socket"}  # fmt: skip
    name = type(named).__name__
    return words.get(name, name.lower())


def _area(vma: VMA, places: Sequence[Extent]) -> dict[str, Any]:
    inside = 0
    for extent in places:
        low, high = max(vma.start, extent.address), min(vma.end, extent.address + extent.pages * PAGE)
        inside += max(0, high - low) // PAGE
    prot = "".join(letter if vma.prot & bit else "-" for letter, bit in (("r", 1), ("w", 2), ("x", 4)))
    what = vma.name or (vma.backing.path if vma.backing is not None else "")
    return {
        "start": vma.start,
        "end": vma.end,
        "prot": prot + ("s" if vma.shared else "p"),
        "what": what,
        "offset": vma.offset,
        "pages": inside,
    }


def _member(path: str) -> dict[str, Any]:
    """A line about one of a series."""
    name = os.path.basename(path)
    if not is_whole(path):
        return {"name": name, "whole": False}
    manifest = read_manifest(path)
    total = sum(file.size for file in manifest.files.values())
    return {"name": name, "whole": True, "taken": manifest.taken, "bytes": total, "ancestors": len(manifest.ancestors)}


# As text


def _text(told: dict[str, Any]) -> Iterator[str]:
    files = ", ".join(f"{name} {size(value)}" for name, value in told["files"].items())
    yield f"{printable(told['path'])}: taken {age(told['taken'])} on {printable(told['host'])} (Linux {told['kernel']})"
    yield f"files: {files}"
    if told["ancestors"]:
        yield f"on top of: {', '.join(told['ancestors'])}"
    if told["series"]:
        yield ""
        yield from table([("CHECKPOINT", "TAKEN", "SIZE"), *map(_series_row, told["series"])], right=(2,))
    for process in told["processes"]:
        yield ""
        yield from _process_text(process)


def _series_row(member: dict[str, Any]) -> Row:
    if not member["whole"]:
        return member["name"], "never finished", ""
    return member["name"], age(member["taken"]), size(member["bytes"])


def _process_text(process: dict[str, Any]) -> Iterator[str]:
    stopped = ", stopped by a signal" if process["stopped"] else ""
    yield f"process {subject(process['pid'], process['comm'])}: {printable(process['exe'])}{stopped}"
    who = f"user {process['uid']}, group {process['gid']}, session {process['session']}"
    yield f"  in {printable(process['cwd'])}, {who}"
    own = process["pages"] - process["own_pages"]
    shared = f", {count(own, 'page')} of them in checkpoints before" if own else ""
    yield f"  {count(process['pages'], 'page')} of memory ({size(process['pages'] * PAGE)}){shared}"
    yield ""
    yield from table([("THREAD", "NAME"), *((str(t["tid"]), printable(t["name"])) for t in process["threads"])], (0,))
    yield ""
    yield from table([("AREA", "PROT", "SIZE", "PAGES", "WHAT"), *map(_area_row, process["vmas"])], (2, 3))
    yield ""
    rows = [(str(d["number"]), d["kind"], _access(d["flags"]), printable(d["link"])) for d in process["descriptors"]]
    yield from table([("FD", "KIND", "MODE", "LEADS TO"), *rows], (0,))
    for lock in process["locks"]:
        yield f"lock: {printable(lock)}"


def _area_row(area: dict[str, Any]) -> Row:
    start, end = area["start"], area["end"]
    return f"{start:x}-{end:x}", area["prot"], size(end - start), f"{area['pages']:,}", printable(area["what"])


def _access(flags: int) -> str:
    mode = {os.O_RDONLY: "r", os.O_WRONLY: "w", os.O_RDWR: "rw"}.get(flags & os.O_ACCMODE, "-")
    return mode + (" append" if flags & os.O_APPEND else "")


def table(rows: Sequence[Row], right: Sequence[int] = ()) -> Iterator[str]:
    """Columns as wide as they need. ``right``: those that are numbers."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()
