"""What the destination agent did for one migration, when, and for how long: lines of JSON beside its journal.

``ID.log`` in the directory of the journals, 0600, made where the command was given ``--log``. Each line has ``time``
(seconds since 1970), ``elapsed`` (seconds since the migration began here), ``id``, ``pid`` (on the source) and
``event``, and what the event needs:

    begun       source, comm
    request     verb, seconds, bytes (that came with it), error (where there is one)
    state       state, why: as in the journal
    asked       how: somebody asks what became of it, or settles it, in the coordinator's place
    ended

No contents of pages, programs or files of the process are in it.

Standard library only, Python 3.9: this travels to the destination.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any


class Log:
    """Open for as long as the migration is ours. ``fd`` is closed with it."""

    def __init__(self, fd: int, path: str, id: str, pid: object) -> None:
        self.path = path
        self._fd = fd
        self._common = {"id": id, "pid": pid}
        self._began = time.time()

    def write(self, event: str, **fields: Any) -> None:
        """A line. A full disk ends the log, and not the migration."""
        if self._fd < 0:
            return
        now = time.time()
        about = {"time": round(now, 6), "elapsed": round(now - self._began, 6), **self._common, "event": event}
        try:
            os.write(self._fd, json.dumps({**about, **fields}).encode() + b"\n")
        except OSError:
            self.close()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
