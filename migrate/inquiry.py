"""`migrate status` and `migrate recover`: what the journals tell, and how what is in doubt is settled."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import trio

from agents import journal, settling
from agents.journal import SOURCE, Directory, JournalError
from migrate.askpass import prompt
from migrate.errors import InDoubt, MigrateError
from migrate.links import reached
from migrate.options import Connection, Inquiry
from migrate.progress import Display, Quiet, put
from migrate.recovery import OPEN, recover
from migrate.wording import printable


def run(inquiry: Inquiry) -> int:
    """Returns the exit code."""
    display = Quiet(verbose=inquiry.verbose)
    if inquiry.verb == "status":
        return trio.run(_status, inquiry, display)
    return trio.run(_recover, inquiry, display)


# Status


async def _status(inquiry: Inquiry, display: Display) -> int:
    found = [("here", each) for each in _here()]
    if inquiry.connection is not None:
        found += [(inquiry.connection.dest, each) for each in await _there(inquiry.connection, display)]
    if inquiry.json:
        put(sys.stdout, json.dumps([{"host": host, **each} for host, each in found]))
        return 0
    if not found:
        put(sys.stdout, "no migration is known of")
        return 0
    put(sys.stdout, "\n".join(_table([Line.of(host, each) for host, each in found])))
    doubtful = [each["id"] for host, each in found if host == "here" and each["role"] == SOURCE and _open(each)]
    if doubtful and not inquiry.quiet:
        put(sys.stderr, f"to settle what is open here: migrate recover {' '.join(doubtful[:1])}")
    return 0


def _here() -> list[dict[str, Any]]:
    try:
        with Directory.opened() as directory:
            return settling.survey(directory)
    except (OSError, JournalError) as error:
        raise MigrateError(f"the journals here cannot be read: {error}") from error


async def _there(connection: Connection, display: Display) -> list[dict[str, Any]]:
    async with reached(connection, prompt(display), display) as (agent, _):
        return list((await agent.request("journals"))["journals"])


def _open(told: Mapping[str, Any]) -> bool:
    return told["outcome"] in OPEN


@dataclass(frozen=True)
class Line:
    """Of the table. ``way``: where the process came from or went to, as seen from the host of the journal."""

    id: str
    host: str
    process: str
    way: str
    began: str
    outcome: str
    why: str

    @classmethod
    def of(cls, host: str, told: Mapping[str, Any]) -> Line:
        """Of a journal, as `settling.survey` gives it."""
        outgoing = told["role"] == SOURCE
        way = f"to {told.get('dest', '?')}" if outgoing else f"from {told.get('source', '?')}"
        process = f"{told.get('pid', '?')} ({told['comm']})" if "comm" in told else "?"
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(float(told["began"]))) if "began" in told else "?"
        values = told["id"], host, process, way, began, told["outcome"], str(told.get("why") or "")
        return cls(*(printable(str(value)) for value in values))


def _table(lines: Sequence[Line]) -> Iterator[str]:
    rows = [("MIGRATION", "JOURNAL", "PROCESS", "WAY", "BEGAN", "OUTCOME")]
    rows += [(each.id, each.host, each.process, each.way, each.began, each.outcome) for each in lines]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    room = max(20, shutil.get_terminal_size((120, 24)).columns)
    for row, line in zip(rows, (None, *lines), strict=True):
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        if line is not None and line.why:
            yield from textwrap.wrap(line.why, room, initial_indent="    ", subsequent_indent="    ")


# Recover


async def _recover(inquiry: Inquiry, display: Display) -> int:
    """All that is open, or the one that was named; the worst of their exit codes. The last one that was begun comes
    first: what it has made of a process on the destination may hold locks that earlier ones want back."""
    ids = [each["id"] for each in _here() if each["role"] == SOURCE and (inquiry.id or _open(each))]
    if inquiry.id is not None:
        ids = [id for id in ids if id == inquiry.id]
        if not ids:
            raise MigrateError(f"this host has no journal of a migration {inquiry.id} from here (migrate status)")
    results, code = [], 0
    for id in reversed(ids):
        try:
            outcome, sentence = await _settled(id, inquiry, display)
        except MigrateError as error:
            outcome, sentence = settling.IN_DOUBT if isinstance(error, InDoubt) else settling.UNKNOWN, str(error)
            code = max(code, error.exit_code)
        results.append({"id": id, "outcome": outcome, "told": sentence})
        if not inquiry.json and not (inquiry.quiet and outcome in (settling.MOVED, settling.ROLLED_BACK)):
            failed = outcome not in (settling.MOVED, settling.ROLLED_BACK)
            put(sys.stderr if failed else sys.stdout, printable(f"migrate: {sentence}" if failed else sentence))
    if inquiry.json:
        put(sys.stdout, json.dumps(results))
    elif not ids and not inquiry.quiet:
        put(sys.stdout, "nothing is in doubt here")
    return code


async def _settled(id: str, inquiry: Inquiry, display: Display) -> tuple[str, str]:
    opened = partial(_locked, id)
    try:
        with Directory.opened() as directory:
            with await opened(directory) as record:
                return await recover(record, inquiry.force, display)
    except (OSError, JournalError) as error:
        raise MigrateError(f"the journal of migration {id} cannot be used: {error}") from error


async def _locked(id: str, directory: Directory) -> journal.Journal:
    """The journal, and its lock, which somebody who looks through the journals may hold for a moment."""
    record = directory.open(id, SOURCE)
    for _ in range(100):
        if record.lock():
            return record
        await trio.sleep(0.01)
    record.close()
    raise MigrateError(f"migration {id} is under way: its command still runs, and settles it by itself")
