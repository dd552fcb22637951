"""The sentence and the object at the end."""

from __future__ import annotations

import json
from dataclasses import replace

from migrate.report import Report, Round

REPORT = Report(
    ok=True, pid=812, comm="xz", dest="node2", new_pid=812, downtime_ms=11.4, total_s=1.9,
    rounds=(Round(105472, 412 << 20, 1.5, 8191), Round(8191, 0, 0.1, 312), Round(312, 0, 0.0123456789, 9)),
    bytes_sent=412 << 20, tracker="pagemap-scan", vdso="remap", phases_ms={"stop": 0.4, "send": 3.2000001},
)  # fmt: skip


def test_sentence() -> None:
    expected = "moved 812 (xz) to node2 as pid 812: 3 rounds, 412 MiB sent in 1.9 s, down for 11.4 ms"
    assert REPORT.sentence() == expected


def test_sentence_of_a_tree() -> None:
    for processes, who in ((11, "812 (xz) and 10 descendants"), (2, "812 (xz) and 1 descendant")):
        assert replace(REPORT, processes=processes).sentence().startswith(f"moved {who} to node2 as pid 812: ")


def test_sentence_of_a_failure_does_not_claim_success() -> None:
    failed = Report(False, 812, "x\x1bz", "node2", error="no room")
    assert failed.sentence() == r"812 (x\x1bz) was not moved to node2: no room"


def test_json_has_the_promised_keys_and_no_others() -> None:
    told = json.loads(REPORT.json())
    assert list(told) == [
        "ok", "id", "pid", "new_pid", "processes", "dest", "downtime_ms", "total_s", "rounds", "bytes_sent", "tracker",
        "vdso", "phases_ms", "error", "stdio_log",
    ]  # fmt: skip
    assert told["rounds"][2] == {"pages": 312, "bytes_sent": 0, "seconds": 0.012346, "dirty_pages_after": 9}
    assert told["phases_ms"] == {"stop": 0.4, "send": 3.2} and told["error"] is None


def test_json_of_a_failure() -> None:
    told = json.loads(Report(False, 812, "xz", "node\udcff", error="no room\n").json())
    assert (told["ok"], told["new_pid"], told["downtime_ms"], told["rounds"]) == (False, None, None, [])
    assert told["error"] == "no room\n"
