"""Pid 1 of a test host: makes the place look like a machine of its own, keeps sshd going, reaps orphans.

Run by tests/hosts.py inside fresh PID, mount, UTS, IPC and network namespaces, as
``host_init.py HOSTNAME DIRECTORY shared|private SSHD-COMMAND…``. It says "mounted" on standard output, waits for a line
on standard input (the network is put in from outside meanwhile), and then goes on until it is killed.

sshd itself would do as pid 1, but tests kill sshd too, and the host has to outlive that.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys


def mount(*arguments: str) -> None:
    """mount(8), which knows about /etc/mtab and propagation; an error ends the host with mount's own words."""
    subprocess.run(["mount", *arguments], check=True)


def main(hostname: str, directory: str, tmp: str, sshd: list[str]) -> None:
    """Mount, wait for the network, run."""
    socket.sethostname(hostname)
    mount("-t", "tmpfs", "-o", "mode=0755", "run", "/run")
    mount("-t", "tmpfs", "-o", "mode=1777", "shm", "/dev/shm")
    mount("-t", "devpts", "-o", "newinstance,ptmxmode=0666,mode=0620,gid=5", "devpts", "/dev/pts")
    os.makedirs("/run/sshd", mode=0o755)
    os.makedirs("/run/lock", mode=0o1777)
    if tmp == "private":
        # the files of the test bed are themselves under /tmp, so they come back on top of the new one
        os.makedirs("/run/testbed")
        mount("--bind", directory, "/run/testbed")
        mount("-t", "tmpfs", "-o", "mode=1777", "tmp", "/tmp")
        os.makedirs(directory)
        mount("--bind", "/run/testbed", directory)
    for path in ("/etc/passwd", "/etc/shadow", "/etc/group", "/etc/sudoers.d"):
        mount("--bind", f"{directory}/{hostname}{path}", path)
    # As on hosts that have been up for a while: the numbers that are in use on one are mostly free on the other.
    with open("/proc/sys/kernel/ns_last_pid", "w") as last:
        last.write("1000" if hostname == "node1" else "20000")
    os.chdir("/")
    print("mounted", flush=True)
    sys.stdin.readline()

    null = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1):
        os.dup2(null, descriptor)
    os.close(null)
    server = os.posix_spawn(sshd[0], sshd, os.environ)
    while True:
        # sshd is always a child, so this never fails with ECHILD
        ended, _ = os.wait()
        if ended == server:
            server = os.posix_spawn(sshd[0], sshd, os.environ)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:])
