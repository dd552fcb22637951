"""Commands in namespaces of their own: of what they start and mount nothing outlives them, however they end."""

from __future__ import annotations

import os
import select
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
    """Kill the first process of the PID namespace, with which all others end, before it has (pid_namespaces(7))."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while process.poll() is None and not (found := children.read_text().split()):
        time.sleep(0.02)  # unshare(1) has not forked yet
    if process.returncode is not None:
        return
    first = os.pidfd_open(int(found[0]))
    process.kill()  # before it can complain: unshare 2.38 does, of its own sigprocmask, when its child is killed
    signal.pidfd_send_signal(first, signal.SIGKILL)
    select.select([first], [], [])  # it has ended
    os.close(first)
    process.wait()
