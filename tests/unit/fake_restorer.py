"""Stands in for the restorer in tests of the agent: the same messages, and a few words to misbehave on.

A "program" is a line of text. Page frames are written to FAKE_RESTORER_PAGES, given as the first argument.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import time

CONTROL, DATA, JOURNAL = 3, 0, 4


def main() -> None:
    control = socket.socket(fileno=CONTROL)
    with open(sys.argv[1], "ab", buffering=0) as pages:
        while head := control.recv(16, socket.MSG_WAITALL):
            kind, meta_len, blob_len = struct.unpack("<IIQ", head)
            meta = control.recv(meta_len, socket.MSG_WAITALL) if meta_len else b""
            if kind == 3:
                left = blob_len
                while left:
                    piece = os.read(DATA, left)
                    pages.write(piece)
                    left -= len(piece)
                bad = meta[8:16] == b"\xee" * 8
                control.sendall(struct.pack("<iIq", 0 if bad else -1, 0, -12 if bad else 0))
                continue
            program = control.recv(blob_len, socket.MSG_WAITALL)
            word, _, rest = program.decode().partition(" ")
            if word == "die":
                os.kill(os.getpid(), int(rest))
            elif word == "journal":  # records, and what to do then
                lines, word, rest = json.loads(rest)
                for line in lines:
                    os.write(JOURNAL, line.encode())
                if word == "die":
                    os.kill(os.getpid(), int(rest))
            elif word == "exit":
                os._exit(int(rest))
            elif word == "hang":
                time.sleep(1000)
            failed = (int(rest), -2) if word == "fail" else (-1, 0)
            control.sendall(struct.pack("<iIq", failed[0], 0, failed[1]))
            if kind == 2:
                control.sendall(program.upper())


main()
