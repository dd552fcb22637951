"""The displays: pictures of the live one, and that none of them ever gets in the way."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from rich.console import Console

from migrate.live import INTERVAL, Live, seconds_running, time_left
from migrate.progress import Display, Plain, Quiet, choose
from migrate.report import Report, Round

SNAPSHOTS = Path(__file__).parent / "snapshots"
PAGE = 4096


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def live(width: int, clock: Clock, verbose: int = 0) -> tuple[Live, io.StringIO]:
    stream = io.StringIO()
    console = Console(file=stream, width=width, height=24, force_terminal=True, color_system=None, highlight=False)
    return Live("812 (xz)", "root@node2", verbose, console, clock), stream


def picture(display: Live, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None, highlight=False, legacy_windows=False)
    with console.capture() as capture:
        console.print(display.render())
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def same_as_snapshot(name: str, text: str) -> None:
    """UPDATE_SNAPSHOTS=1 writes the files anew: look at the difference before you commit it."""
    path = SNAPSHOTS / name
    if os.environ.get("UPDATE_SNAPSHOTS"):
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("width", [40, 80, 120])
def test_pictures(width: int) -> None:
    clock = Clock()
    display, _ = live(width, clock)
    pictures = []

    def take(title: str) -> None:
        pictures.append(f"-- {title}\n{picture(display, width)}")

    display.phase("preflight", "looking at both sides")
    take("preflight")
    display.phase("copying", "while it runs")
    display.round_started(1, 105_472)
    take("nothing sent yet")
    clock.now += 0.25
    display.sent(200 << 20, 51_200, 655 << 20)
    take("half-way through the first round")
    clock.now += 0.4
    display.sent(412 << 20, 105_472, 655 << 20)
    display.round_finished(Round(105_472, 412 << 20, 0.65, 8191))
    display.round_started(2, 8191)
    display.sent(440 << 20, 105_472 + 7000, 640 << 20)
    take("second round")
    for number in range(2, 12):
        display.round_finished(Round(8000 // number, 8000 // number * PAGE, 0.01, 7000 // number))
    clock.now += 3700
    display.phase("freezing")
    take("many rounds")
    same_as_snapshot(f"live-{width}.txt", "\n".join(pictures))


def test_it_draws_ten_times_a_second_at_most() -> None:
    clock = Clock()
    display, stream = live(80, clock)
    display.phase("copying")
    display.round_started(1, 1_000_000)
    drawn, last = 0, stream.tell()
    for i in range(10_000):  # one second
        clock.now += 0.0001
        display.sent(i * PAGE, i, 1e6)
        display.tick()
        drawn += stream.tell() != last
        last = stream.tell()
    assert 8 <= drawn <= 1 / INTERVAL
    display.close()


def test_suspended_it_draws_nothing_and_then_all() -> None:
    clock = Clock()
    display, stream = live(80, clock)
    display.phase("freezing")
    display.suspend()
    before = stream.tell()
    for _ in range(10):
        clock.now += 1
        display.phase("restoring")
        display.note("said while frozen")
        display.warn("warned while frozen")
        display.sent(1, 1, 1.0)
        display.tick()
    assert stream.tell() == before
    display.resume()
    stream.seek(before)
    after = stream.read()
    assert after.count("said while frozen") == 10 and "restoring" in after
    display.close()


def test_closed_it_shows_the_cursor_again_and_keeps_the_rounds() -> None:
    display, stream = live(80, Clock())
    display.phase("copying")
    display.round_finished(Round(10, 40960, 0.1, 2))
    display.close()
    end = stream.tell()
    assert "\x1b[?25l" in stream.getvalue() and stream.getvalue().endswith("\x1b[?25h")
    assert "left dirty" in stream.getvalue()
    display.phase("late")
    display.tick()
    display.close()
    assert stream.tell() == end


def test_names_cannot_draw() -> None:
    display, stream = live(80, Clock())
    display.phase("copying", "\x1b[2J[red]x")
    display.note("\x1b]0;title\x07[bold]")
    display.warn("\x1b[5m")
    display.close()
    assert "\x1b[2J" not in stream.getvalue() and "\x1b]0;" not in stream.getvalue()
    assert r"\x1b[2J[red]x" in stream.getvalue() and "[bold]" in stream.getvalue()


def test_details_are_for_v() -> None:
    for verbose in (0, 1):
        display, stream = live(80, Clock(), verbose)
        display.detail("the cipher is aes128-gcm")
        display.close()
        assert ("aes128" in stream.getvalue()) == bool(verbose)


class Gone(io.StringIO):
    """A terminal whose window was closed."""

    def write(self, text: str) -> int:
        raise OSError(5, "Input/output error")


def drive(display: Display) -> None:
    display.phase("copying", "x")
    display.round_started(1, 10)
    display.sent(1, 1, 1.0)
    display.round_finished(Round(10, 40960, 0.1, 2))
    display.note("n")
    display.detail("d")
    display.warn("w")
    display.suspend()
    display.note("held")
    display.tick()
    display.resume()
    display.close()
    display.finished(Report(True, 1, "x", "node2", 2, 1.0, 1.0, stdio_log="/tmp/x"))


def test_a_closed_window_does_not_stop_a_migration() -> None:
    drive(Live("1", "node2", 1, Console(file=Gone(), force_terminal=True, width=80)))
    drive(Plain(Gone(), Gone(), verbose=1))
    drive(Quiet(Gone(), Gone()))
    closed = io.StringIO()
    closed.close()
    drive(Plain(closed, closed))


def test_plain_lines() -> None:
    out, err = io.StringIO(), io.StringIO()
    drive(Plain(out, err, verbose=1))
    assert err.getvalue() == (
        "copying: x\n"
        "round 1: 10 pages, 40 KiB in 100.0 ms (400 KiB/s), 2 pages dirtied meanwhile (80 KiB/s)\n"
        "note: n\nd\nwarning: w\nnote: held\n"
        "downtime: not measured; dirty pages by None; vDSO None\n"
    )
    assert out.getvalue() == (
        "moved 1 (x) to node2 as pid 2: 0 rounds, 0 B sent in 1.0 s, down for 1.0 ms\n"
        "its output goes on in /tmp/x on node2\n"
    )


def test_plain_holds_its_lines_back_too() -> None:
    err = io.StringIO()
    display = Plain(io.StringIO(), err)
    display.suspend()
    display.phase("freezing")
    assert err.getvalue() == ""
    display.close()
    assert err.getvalue() == "freezing\n"


def test_an_ascii_terminal_gets_escapes() -> None:
    raw = io.BytesIO()
    display = Plain(io.StringIO(), io.TextIOWrapper(raw, encoding="ascii"))
    display.note("→ \udcff")
    display.close()
    assert raw.getvalue() == b"note: \\u2192 \\xff\n"


@pytest.mark.parametrize(
    ("terminal", "quiet", "json", "expected"),
    [(True, False, False, Live), (False, False, False, Plain), (True, False, True, Plain), (True, True, False, Quiet)],
)
def test_choice(monkeypatch: pytest.MonkeyPatch, terminal: bool, quiet: bool, json: bool, expected: type) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal, raising=False)
    display = choose(pid=1, comm="x", dest="node2", quiet=quiet, json=json, verbose=0)
    assert type(display) is expected


def test_clocks() -> None:
    assert [seconds_running(s) for s in (0, 7.9, 67, 3723)] == ["0:00", "0:07", "1:07", "1:02:03"]
    assert [time_left(s) for s in (0.01, 0.34, 9.9, 12.3, 245)] == ["0.1 s", "0.3 s", "9.9 s", "12 s", "4:05"]
