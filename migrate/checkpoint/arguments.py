"""The command lines of `migrate dump`, `migrate restore` and `migrate show`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from migrate.checkpoint.jobs import STREAM, Dump, Job, Restore, Show
from migrate.errors import UsageError
from migrate.parsing import Help, Parser, add_cgroup, checked, process_number
from migrate.wording import parse_duration

VERBS = ("dump", "restore", "show")
_BEFORE = frozenset({"-v", "-vv", "--verbose", "-q", "--quiet", "--json"})  # may come before the verb

_DUMP = """\
Write a checkpoint of a running process and all that descend from it into a
directory: their memory while they work, then, while they stand still for a
moment, what has changed since and the rest of their state. They end when the
checkpoint is whole on the disk; if anything fails before that, they go on as if
nothing had happened.
"""
_DUMP_END = """\
exit codes:
  0    dumped
  2    the command line makes no sense
  3    refused before anything was touched; every reason is listed
  5    failed: the process runs on, and there is no checkpoint
  130  interrupted (Ctrl-C): the same

examples:
  migrate dump 812 /var/tmp/job
  migrate dump --leave-running --track 812 /var/tmp/job    again and again
  migrate dump --stream 812 | zstd > job.zst
"""
_RESTORE = """\
Restore the process of a checkpoint with its descendants, on this host or on
another one that has their files. They keep their numbers, or get a PID
namespace of their own where one is taken. The number of the first is printed.
"""
_RESTORE_END = """\
exit codes:
  0    restored; with --stdio, what the process exits with (128 plus the number
       of the signal that ended it)
  2    the command line makes no sense
  3    refused: every reason is listed
  5    failed: nothing of it is left
  6    in doubt: see migrate status
  130  interrupted (Ctrl-C): nothing of it is left

examples:
  migrate restore /var/tmp/job
  migrate restore /var/tmp/job/0003                        of a series
  zstdcat job.zst | migrate restore -
"""
_SHOW = "Print what a checkpoint holds: processes, memory, descriptors, sizes."


def parse(argv: Sequence[str]) -> Job | None:
    """What ``argv`` asks for; None: nothing of ours. UsageError if it makes no sense, SystemExit after --help."""
    at = next((index for index, word in enumerate(argv) if word not in _BEFORE), len(argv))
    verb = argv[at] if at < len(argv) else ""
    if verb not in VERBS:
        return None
    given = vars(_PARSERS[verb]().parse_args([*argv[:at], *argv[at + 1 :]]))
    if given["quiet"] and given["verbose"]:
        raise UsageError("-q and -v contradict each other")
    if verb == "show":
        return Show(**given)
    if verb == "restore":
        given.pop("detach")
        if given["stdio"] and given["directory"] == STREAM:
            raise UsageError("--stdio and a stream both need standard input")
        return Restore(**given)
    return _dump(given)


def _dump(given: dict[str, Any]) -> Dump:
    stream = given.pop("stream")
    if stream and given["directory"] not in (None, STREAM):
        raise UsageError("--stream writes to standard output, and takes no DIR")
    if stream or given["directory"] == STREAM:
        if given["track"]:
            raise UsageError("--track needs a directory, where the checkpoints before are")
        if given["json"]:
            raise UsageError("--json and --stream both write to standard output")
        given["directory"] = STREAM
    if given["directory"] is None:
        raise UsageError("the following arguments are required: DIR")
    return Dump(**given)


def _parser(verb: str, usage: str, description: str, epilog: str = "") -> Parser:
    return Parser(
        prog=f"migrate {verb}", description=description, epilog=epilog, formatter_class=Help, allow_abbrev=False,
        add_help=False, usage=f"migrate {verb} [options] {usage}",
    )  # fmt: skip


def _output(parser: Parser) -> None:
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="one JSON object last on standard output")
    output.add_argument("-v", "--verbose", action="count", default=0, help="say why; -vv: tracebacks, too")
    output.add_argument("-q", "--quiet", action="store_true", help="say nothing but errors")
    output.add_argument("-h", "--help", action="help", help="print this")


def _dump_parser() -> Parser:
    parser = _parser("dump", "PID DIR", _DUMP, _DUMP_END)
    what = parser.add_argument_group("what and where")
    help = "the process; with all of its threads, and all that descend from it"
    what.add_argument("pid", metavar="PID", type=checked(process_number), help=help)
    what.add_argument("directory", metavar="DIR", nargs="?", help="a new or empty directory of yours")
    how = parser.add_argument_group("how to dump it")
    how.add_argument("--leave-running", action="store_true", help="let the process go on afterwards")
    how.add_argument(
        "--track",
        action="store_true",
        help="make a series: DIR/0001, DIR/0002, …, each with only those pages that differ from the one before",
    )
    how.add_argument(
        "--stream", action="store_true", help="to standard output instead of DIR; the process stands still meanwhile"
    )
    how.add_argument(
        "--max-downtime",
        metavar="TIME",
        type=checked(parse_duration),
        default=0.3,
        help="how long it may stand still, if that can be had by copying more while it runs (default: 300ms)",
    )
    how.add_argument(
        "--tracker",
        choices=("auto", "pagemap-scan", "soft-dirty", "digest"),
        default="auto",
        help="how to find pages that it writes to meanwhile (default: auto: the best that this kernel has)",
    )
    _output(parser)
    return parser


def _restore_parser() -> Parser:
    parser = _parser("restore", "DIR", _RESTORE, _RESTORE_END)
    what = parser.add_argument_group("what")
    what.add_argument(
        "directory",
        metavar="DIR",
        help='of a checkpoint, or of a series (the last one); "-": a stream from standard input',
    )
    how = parser.add_argument_group("how to restore it")
    streams = how.add_mutually_exclusive_group()
    streams.add_argument(
        "--detach",
        action="store_true",
        help="leave it on its own (the default); standard streams that led to a terminal or another process lead to a "
        "log file, whose path is printed",
    )
    streams.add_argument(
        "--stdio",
        action="store_true",
        help="those streams are ours; wait for its end, pass signals on, and exit as it does",
    )
    how.add_argument(
        "--cpu-check",
        choices=("all", "xstate", "off"),
        default="all",
        help="what this CPU must have: all that the one had where it was dumped (the default); room for what is in the "
        "registers; or nothing",
    )
    how.add_argument(
        "--no-clock", action="store_true", help="let CLOCK_MONOTONIC and CLOCK_BOOTTIME jump without time namespaces"
    )
    add_cgroup(how, "here")
    _output(parser)
    return parser


def _show_parser() -> Parser:
    parser = _parser("show", "DIR", _SHOW)
    what = parser.add_argument_group("what")
    what.add_argument("directory", metavar="DIR", help="of a checkpoint, or of a series (the last one)")
    _output(parser)
    return parser


_PARSERS = {"dump": _dump_parser, "restore": _restore_parser, "show": _show_parser}
