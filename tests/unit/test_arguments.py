"""The command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrate.arguments import parse
from migrate.checkpoint.jobs import Dump, Restore, Show
from migrate.errors import UsageError
from migrate.options import Connection, Inquiry, Options
from migrate.transport.target import parse as parse_destination

SNAPSHOTS = Path(__file__).parent / "snapshots"


def test_the_least_that_is_needed() -> None:
    assert parse(["812", "node2"]) == Options(pid=812, dest="node2")


def test_everything_at_once() -> None:
    given = (
        "-p 2222 -i a -i b -F none -J bastion,x@y:1 --sudo --max-downtime 50ms --max-rounds 7 --no-converge continue "
        "--bandwidth 1Gbit/s --compress lz4 --tracker digest --cpu-check xstate --no-clock --verify --reconnect-for 5s "
        "--stdio null --log l --json -vv 812 me@node2"
    )
    assert parse(given.split()) == Options(
        pid=812, dest="me@node2", port=2222, identities=("a", "b"), ssh_config="none",
        jump="bastion,x@y:1", sudo=True, max_downtime=0.05, max_rounds=7, no_converge="continue", bandwidth=125e6,
        compress="lz4", tracker="digest", cpu_check="xstate", no_clock=True, verify=True, reconnect_for=5.0,
        stdio="null", log="l", json=True, verbose=2, quiet=False,
    )  # fmt: skip


def test_status_and_recover() -> None:
    assert parse(["status"]) == Inquiry("status")
    assert parse("-F none --json status me@node2 -p 2222".split()) == Inquiry(
        "status", Connection("me@node2", 2222, ssh_config="none"), json=True
    )
    assert parse(["recover"]) == Inquiry("recover")
    id = "261121100343-51d09f3a2c1b"
    assert parse(["-v", "recover", id, "--abort"]) == Inquiry("recover", id=id, force="abort", verbose=1)


@given(st.text())
def test_any_text_is_a_destination_or_an_error(text: str) -> None:
    try:
        _, host, port = parse_destination(text)
    except UsageError:
        return
    assert host and not host.startswith("-") and host.isprintable() and (port is None or 0 < port < 65536)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "required: PID, DEST"),
        ("812", "required: DEST"),
        ("x node2", "'x' is not a process number"),
        ("0 node2", "'0' is not a process number"),
        ("-1 node2", ""),
        ("4194305 node2", "greater than any process number"),
        ("812 node2 extra", "unrecognized arguments: extra"),
        ("812 node2:22 -p 23", "two ports"),
        ("812 node2 -p 70000", "not a port"),
        ("812 node2 --max-downtime soon", "'soon' is not a duration such as 300ms"),
        ("812 node2 --max-rounds 0", "not a positive number"),
        ("812 node2 --bandwidth 100", "not a bandwidth such as 100MB/s"),
        ("812 node2 --no-converge panic", "invalid choice"),
        ("812 node2 --compress zip", "invalid choice"),
        ("812 node2 --max-down 1s", "unrecognized arguments"),
        ("812 node2 -q -v", "contradict"),
        ("812 :22", "is not a destination"),
        ("812 node2 --abort", "--abort is for migrate recover"),
        ("status --commit", "--commit is for migrate recover"),
        ("dump 812", "required: DIR"),
        ("dump x d", "'x' is not a process number"),
        ("dump --stream 812 d", "takes no DIR"),
        ("dump --stream --track 812", "--track needs a directory"),
        ("dump --stream --json 812", "both write to standard output"),
        ("dump -q -v 812 d", "contradict"),
        ("restore", "required: DIR"),
        ("restore --detach --stdio d", "not allowed with"),
        ("show", "required: DIR"),
        ("recover 812", "'812' is not the id of a migration"),
        ("recover ../../etc/passwd", "is not the id of a migration"),
        ("recover 261121100343-51d09f3a2c1b --commit --abort", "not allowed with"),
    ],
)
def test_usage_errors_say_what_is_wrong(arguments: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(arguments.split())
    assert message in str(caught.value)


@pytest.mark.parametrize("verb", ["", "dump", "restore", "show"])
def test_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse([*filter(None, [verb]), "--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0
    assert max(map(len, text.splitlines())) <= 80
    assert text == (SNAPSHOTS / f"help{'-' if verb else ''}{verb}.txt").read_text()


def test_checkpoints() -> None:
    assert parse(["dump", "812", "d"]) == Dump(812, "d")
    assert parse("-v dump --leave-running --track --max-downtime 5ms --tracker digest 812 d --json".split()) == Dump(
        812, "d", leave_running=True, track=True, max_downtime=0.005, tracker="digest", json=True, verbose=1
    )
    assert parse(["dump", "--stream", "812"]) == parse(["dump", "812", "-"]) == Dump(812, "-")
    assert parse("restore --cpu-check off --no-clock --stdio d".split()) == Restore(
        "d", stdio=True, cpu_check="off", no_clock=True
    )
    assert parse(["restore", "--detach", "-"]) == Restore("-")
    assert parse(["--json", "show", "d"]) == Show("d", json=True)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(["--version"])
    assert caught.value.code == 0 and capsys.readouterr().out.startswith("migrate 0.")
