"""The command line of `migrate`: its options, their help, and the checks."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from agents.journal import check_id
from migrate import __version__
from migrate.checkpoint import arguments as checkpoint
from migrate.checkpoint.jobs import Job
from migrate.errors import UsageError
from migrate.options import Connection, Inquiry, Options
from migrate.parsing import Help, Parser, add_cgroup, checked, positive, process_number
from migrate.transport.target import parse as parse_destination
from migrate.wording import parse_bandwidth, parse_duration

VERBS = ("status", "recover")
"""In place of a process number."""

_DESCRIPTION = """\
Move a running process to another host over SSH, live: its memory travels while
it works, it is stopped for a few milliseconds, and it goes on there. If
anything fails before that, it goes on here as if nothing had happened.
"""

_EPILOG = """\
exit codes:
  0    moved
  2    the command line makes no sense
  3    refused before anything was touched; every reason is listed
  4    cannot connect to the destination, or it does not let us in
  5    failed and rolled back: the process runs on here
  6    in doubt: the connection broke at the very moment of the commit, and the
       process stays stopped here until `migrate recover` learns where it runs
  130  interrupted (Ctrl-C) and rolled back: the process runs on here

examples:
  migrate 812 node2                      node2 is a Host of your ~/.ssh/config
  migrate 812 root@10.0.0.2:2222
  migrate --sudo 812 admin@node2         become root there
  migrate --max-downtime 50ms --no-converge continue 812 node2
  migrate --bandwidth 100MB/s --json 812 node2 | jq .downtime_ms
  migrate -J bastion --stdio /var/log/job.log "$(pgrep -n myjob)" node2
  migrate status node2                   the journals here and there
  migrate recover                        settle whatever is in doubt here
  migrate dump 812 /var/tmp/job          a checkpoint on disk (migrate dump -h)
  migrate restore /var/tmp/job
"""


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="migrate",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=Help,
        allow_abbrev=False,
        add_help=False,
        usage="migrate [options] PID DEST\n"
        "       migrate [options] status [DEST]\n"
        "       migrate [options] recover [ID] [--commit | --abort]\n"
        "       migrate dump [options] PID DIR\n"
        "       migrate restore [options] DIR\n"
        "       migrate show [options] DIR",
    )
    what = parser.add_argument_group("what and where")
    what.add_argument(
        "pid", metavar="PID", nargs="?", type=checked(_pid_or_verb), help="the process; all of its threads move"
    )
    what.add_argument(
        "dest", metavar="DEST", nargs="?", help="user@host, user@host:port, or a Host of your ssh configuration"
    )

    after = parser.add_argument_group("afterwards")
    force = after.add_mutually_exclusive_group()
    force.add_argument(
        "--commit",
        action="store_const",
        dest="force",
        const="commit",
        help="recover, when the destination cannot be asked: take it that the process runs there, and end the copy "
        "here. If it does not, it is lost",
    )
    force.add_argument(
        "--abort",
        action="store_const",
        dest="force",
        const="abort",
        help="the other way round: let the copy here go on. If the process runs there too, it runs twice",
    )

    ssh = parser.add_argument_group("connection, as ssh has it")
    ssh.add_argument("-p", dest="port", metavar="PORT", type=checked(_port), help="port of sshd")
    ssh.add_argument(
        "-i", dest="identities", metavar="FILE", action="append", default=[], help="private key; may be repeated"
    )
    ssh.add_argument(
        "-F", dest="ssh_config", metavar="FILE", help='configuration instead of ~/.ssh/config ("none": no file)'
    )
    ssh.add_argument("-J", dest="jump", metavar="HOST[,…]", help="go through these hosts")
    ssh.add_argument("--sudo", action="store_true", help="become root on the destination by sudo")

    how = parser.add_argument_group("how to move it")
    how.add_argument(
        "--max-downtime",
        metavar="TIME",
        type=checked(parse_duration),
        default=0.3,
        help="how long it may be stopped: 300ms, 0.3s, or a number of milliseconds (default: 300ms)",
    )
    how.add_argument(
        "--max-rounds",
        metavar="N",
        type=checked(positive),
        default=30,
        help="how often to go over its memory while it runs (default: 30)",
    )
    how.add_argument(
        "--no-converge",
        choices=("stop", "continue"),
        default="stop",
        help="if it dirties memory as fast as it travels, so that the downtime would be exceeded: stop (the default) "
        "gives up and leaves it running here; continue moves it all the same",
    )
    how.add_argument(
        "--bandwidth",
        metavar="RATE",
        type=checked(parse_bandwidth),
        help="send no faster than this: 100MB/s, 64MiB/s, 1Gbit/s (default: no limit)",
    )
    how.add_argument(
        "--compress",
        choices=("auto", "none", "lz4"),
        default="auto",
        help="pages on the wire (default: auto: if it pays)",
    )
    how.add_argument(
        "--tracker",
        choices=("auto", "pagemap-scan", "soft-dirty", "digest"),
        default="auto",
        help="how to find dirty pages (default: auto: the best that this kernel has)",
    )
    how.add_argument(
        "--cpu-check",
        choices=("all", "xstate", "off"),
        default="all",
        help="what the destination's CPU must have: all that this one shows (the default); room for what is in the "
        "registers, while programs that use more than it has end by SIGILL; or nothing",
    )
    how.add_argument(
        "--no-clock",
        action="store_true",
        help="let CLOCK_MONOTONIC and CLOCK_BOOTTIME jump if the destination has no time namespaces",
    )
    how.add_argument(
        "--verify",
        action="store_true",
        help="compare digests of all of its pages here and there before the commit, while it is stopped: costs about "
        "2 s of downtime for each GiB; if a page differs, it goes on here",
    )
    how.add_argument(
        "--reconnect-for",
        metavar="TIME",
        type=checked(parse_duration),
        default=60.0,
        help="if the connection breaks in the commit: how long to try to learn what became of it, with the process "
        "stopped (default: 60s)",
    )
    add_cgroup(how, "on the destination")
    how.add_argument(
        "--stdio",
        metavar="null|FILE",
        help="where standard streams go that lead to a terminal or another process: nowhere, or to FILE on the "
        "destination (default: a log file there, whose path is printed)",
    )

    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="one JSON object last on standard output, however it ends")
    output.add_argument(
        "--log",
        metavar="FILE",
        help="append what happens to FILE, as lines of JSON with times; the "
        "destination keeps one of its own beside its journal",
    )
    output.add_argument(
        "-v",
        "--verbose",
        action="count",
        default=0,
        help="say why; -vv: tracebacks, and the programs that make the process there, too",
    )
    output.add_argument("-q", "--quiet", action="store_true", help="say nothing but errors")
    output.add_argument("--version", action="version", version=f"migrate {__version__}", help="print the version")
    output.add_argument("-h", "--help", action="help", help="print this")
    return parser


def parse(argv: Sequence[str]) -> Options | Inquiry | Job:
    """What ``argv`` asks for. UsageError if it makes no sense; SystemExit after --help and --version."""
    job = checkpoint.parse(argv)
    if job is not None:
        return job
    given = vars(_parser().parse_args(argv))
    if given["quiet"] and given["verbose"]:
        raise UsageError("-q and -v contradict each other")
    verb, force = given["pid"], given.pop("force")
    given["identities"] = tuple(given["identities"])
    if verb == "recover":
        output = {name: given[name] for name in ("json", "verbose", "quiet")}
        return Inquiry(verb, id=_id(given["dest"]), force=force, **output)
    if force is not None:
        raise UsageError(f"--{force} is for migrate recover")
    if given["dest"] is not None:
        port = parse_destination(given["dest"]).port
        if port is not None and given["port"] not in (None, port):
            raise UsageError(f"two ports: {port} in {given['dest']!r} and -p {given['port']}")
    if verb == "status":
        names = ("dest", "port", "identities", "ssh_config", "jump", "sudo")
        connection = Connection(**{name: given[name] for name in names}) if given["dest"] is not None else None
        output = {name: given[name] for name in ("json", "verbose", "quiet")}
        return Inquiry(verb, connection, **output)
    missing = [name.upper() for name in ("pid", "dest") if given[name] is None]
    if missing:
        raise UsageError(f"the following arguments are required: {', '.join(missing)}")
    return Options(**given)


def _id(text: str | None) -> str | None:
    try:
        return None if text is None else check_id(text)
    except ValueError as error:
        raise UsageError(f"{error}, as migrate status lists them") from None


def _pid_or_verb(text: str) -> int | str:
    return text if text in VERBS else process_number(text)


def _port(text: str) -> int:
    number = positive(text)
    if number > 65535:
        raise ValueError(f"{text} is not a port")
    return number
