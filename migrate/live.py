"""The live display: what the process and the network are doing, in a few calm lines that redraw in place.

rich draws it, without its refresh thread (a thread that takes the GIL in the frozen window would show in the
downtime): each event redraws at most ten times a second, and while suspended not at all.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial

from rich.console import Console, Group, RenderableType
from rich.live import Live as RichLive
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from migrate.progress import Quiet, describe_downtime, dirty_rate, put, sent_rate, stdio_log_sentence
from migrate.report import Report, Round
from migrate.wording import printable, rate, seconds, size

INTERVAL = 0.1  # seconds between two drawings
SHOWN = 8  # rounds; of more, the latest


class Live(Quiet):
    """Header, one row for each round, and the round in progress."""

    def __init__(
        self,
        who: str,
        dest: str,
        verbose: int = 0,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(verbose=verbose)
        self._who, self._dest, self._clock = who, dest, clock
        self._console = console or Console(stderr=True, highlight=False)
        self._began = clock()
        self._drawn = float("-inf")
        self._phase, self._detail = "starting", ""
        self._round: tuple[int, int, float] | None = None  # number, pages, when it began
        self._sent = (0, 0)  # bytes and pages since the migration began
        self._before = (0, 0)  # the same when the round began
        self._rate = 0.0
        self._notes: list[Text] = []
        self._gone = False
        self._live = RichLive(console=self._console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
        self._started = False

    # Events

    def phase(self, name: str, detail: str = "") -> None:
        self._phase, self._detail, self._round = name, detail, None
        self._draw(now=True)

    def round_started(self, number: int, pages: int) -> None:
        self._round, self._before = (number, pages, self._clock()), self._sent
        self._draw()

    def sent(self, bytes_total: int, pages_total: int, rate: float) -> None:
        self._sent, self._rate = (bytes_total, pages_total), rate
        self._draw()

    def round_finished(self, round: Round) -> None:
        super().round_finished(round)
        self._round = None
        self._draw()

    def note(self, text: str) -> None:
        self._print(Text(f"  {printable(text)}", "dim"))

    def detail(self, text: str) -> None:
        if self.verbose:
            self.note(text)

    def warn(self, text: str) -> None:
        self._print(Text.assemble(("  warning: ", "yellow"), printable(text)))

    def resume(self) -> None:
        self._held = None
        self._flush_notes()
        self._draw(now=True)

    def suspend(self) -> None:
        if self._held is None:
            self._draw(now=True)
        super().suspend()

    def tick(self) -> None:
        self._draw()

    def close(self) -> None:
        self._held = None
        self._flush_notes()
        if self._started:
            self._started = False
            self._live.transient = not self.rounds  # the table of rounds stays, a bare header goes
            self._attempt(lambda: self._live.update(self._last_picture(), refresh=True))
            self._attempt(self._live.stop)
            self._gone = True

    def finished(self, report: Report) -> None:
        self.close()
        put(sys.stdout, report.sentence())
        if report.stdio_log:
            put(sys.stdout, stdio_log_sentence(report))
        if self.verbose:
            put(sys.stderr, describe_downtime(report))

    # Drawing

    def _print(self, text: Text) -> None:
        self._notes.append(text)
        self._flush_notes()

    def _flush_notes(self) -> None:
        if self._held is None:
            notes, self._notes = self._notes, []
            for text in notes:
                self._attempt(partial(self._console.print, text, soft_wrap=False))

    def _draw(self, now: bool = False) -> None:
        if self._gone or self._held is not None:
            return
        moment = self._clock()
        if not now and moment - self._drawn < INTERVAL:
            return
        self._drawn = moment
        if not self._started:
            self._started = True
            self._attempt(self._live.start)
        self._attempt(lambda: self._live.update(self.render(), refresh=True))

    def _attempt(self, action: Callable[[], None]) -> None:
        """Draw, unless the terminal is gone: then never again."""
        if self._gone:
            return
        try:
            action()
        except (OSError, ValueError):
            self._gone = True

    def render(self) -> RenderableType:
        """The picture as it is now."""
        parts: list[RenderableType] = [self._header()]
        if self.rounds:
            parts += [Text(""), self._rounds_table()]
        if self._round is not None:
            parts += [Text(""), self._current_round()]
        return Group(*parts)

    def _last_picture(self) -> RenderableType:
        return Group(Text(""), self._rounds_table(), Text("")) if self.rounds else Text("")

    def _header(self) -> RenderableType:
        header = Table.grid(expand=True, padding=(0, 1))
        header.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        header.add_column(justify="right", no_wrap=True)
        title = Text.assemble(
            "  ",
            (self._who, "bold"),
            (" → ", "dim"),
            (self._dest, "bold"),
            ("   ", ""),
            (self._phase, "cyan"),
            (f"  {printable(self._detail)}" if self._detail else "", "dim"),
        )
        header.add_row(title, Text(seconds_running(self._clock() - self._began), "dim"))
        return header

    def _rounds_table(self) -> RenderableType:
        table = Table(box=None, padding=(0, 0, 0, 3), pad_edge=True, header_style="dim", show_edge=False)
        for name, width in (("round", 5), ("pages", 10), ("sent", 8), ("rate", 10), ("took", 9), ("left dirty", 10)):
            table.add_column(name, justify="right", no_wrap=True, min_width=width)
        wide = self._console.width >= 84
        if wide:
            table.add_column("dirty rate", justify="right", no_wrap=True, min_width=10)
        first = max(0, len(self.rounds) - SHOWN)
        if first:
            table.add_row("…", *[""] * (5 + wide), style="dim")
        for number, done in enumerate(self.rounds[first:], first + 1):
            row = [str(number), f"{done.pages:,}", size(done.bytes_sent), rate(sent_rate(done)), seconds(done.seconds)]
            row += [f"{done.dirty_pages_after:,}"] + ([rate(dirty_rate(done))] if wide else [])
            table.add_row(*row)
        return table

    def _current_round(self) -> RenderableType:
        assert self._round is not None
        number, pages, began = self._round
        done = min(self._sent[1] - self._before[1], pages)
        line = Table.grid(padding=(0, 2))
        line.add_column(no_wrap=True, min_width=8, justify="right")
        line.add_column(width=min(32, max(10, self._console.width - 56)))
        for width in (4, 10, 10, 12):
            line.add_column(no_wrap=True, justify="right", min_width=width)
        share = done / pages if pages else 1.0
        line.add_row(
            Text(str(number)),
            ProgressBar(
                total=max(pages, 1), completed=done if pages else 1, complete_style="cyan", finished_style="cyan"
            ),
            Text(f"{share:.0%}"),
            Text(size(self._sent[0] - self._before[0])),
            Text(rate(self._rate) if self._rate else ""),
            Text(self._time_left(pages - done, done, began), "dim"),
        )
        return line

    def _time_left(self, left: int, done: int, began: float) -> str:
        elapsed = self._clock() - began
        if not done or not left or elapsed < INTERVAL:
            return ""
        return f"{time_left(left * elapsed / done)} left"


def seconds_running(value: float) -> str:
    """``0:07``, and after an hour ``1:02:03``."""
    minutes, rest = divmod(int(value), 60)
    return f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def time_left(value: float) -> str:
    """``0.3 s``, ``12 s``, ``4:05``: coarse, for a countdown in milliseconds only flickers."""
    if value < 10:
        return f"{max(0.1, value):.1f} s"
    return f"{value:.0f} s" if value < 100 else seconds_running(value)
