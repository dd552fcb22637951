"""Commands in namespaces of their own: of what they start and mount nothing outlives them, however they end."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path


def run(argv: Sequence[str], network: bool = True) -> None:
    """Run a command in PID and mount namespaces and, without ``network``, in a network namespace too.

    CalledProcessError when it fails. Whatever else ends this, what the command has started is killed, and has ended.
    """
    spaces = ["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", *([] if network else ["--net"])]
    # A session of its own: Ctrl-C is for us, who can end all of it at once, not for each of them in its own way.
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "unshare", *spaces, *argv], stdin=subprocess.DEVNULL, start_new_session=True
    )
    try:
        status = process.wait()
    except BaseException:
        _end(process)
        raise
    if status:
        raise subprocess.CalledProcessError(status, argv[0])


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the first process of the PID namespace, with which all others end (pid_namespaces(7)).

    unshare(1) waits for it, and it is not done before the others are. Until it has forked there is none.
    """
    while process.poll() is None:
        for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            os.kill(int(child), signal.SIGKILL)
        time.sleep(0.02)
