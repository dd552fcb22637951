"""The clocks of a process on a machine that has others: told, watched, and never let go back."""

from __future__ import annotations

from migrate import faults
from migrate.destination import Destination, Facts, Inside
from migrate.engine.clocks import behind, wanted_offsets
from migrate.engine.kernel.timens import NSEC, Offsets
from migrate.engine.preview import Preview
from migrate.errors import Failed
from migrate.progress import Display


class Timekeeping:
    """CLOCK_MONOTONIC and CLOCK_BOOTTIME of one process on its way."""

    def __init__(self, preview: Preview, facts: Facts) -> None:
        self._task, self._facts = Offsets(*preview.clock_offsets), facts
        self._wanted = wanted_offsets(self._task, facts.here, facts.there)
        self._own = facts.offsets or Offsets()  # the destination agent's
        self._watched = False

    @property
    def namespace(self) -> Offsets | None:
        """Of the time namespace in which they go on; None: those that the destination has are right, or it has no such
        namespaces."""
        return None if self._facts.offsets is None or self._wanted == self._own else self._wanted

    def tell(self, inside: Inside, display: Display) -> None:
        """What becomes of them, where they are not those of the destination."""
        if self._wanted == self._own:
            return
        if self.namespace is None or inside.no_clocks:
            jump = f"{(self._own.monotonic - self._wanted.monotonic) / NSEC:+.6f} s"
            display.warn(f"CLOCK_MONOTONIC of the process jumps by {jump}, and what it waits for by that clock")
            return
        # Where both hosts have one clock, as containers of one machine do, it is exact.
        self._watched = not self._facts.one_machine
        error = self._facts.round_trip if self._watched else 0
        display.detail(
            f"its clocks go on in a time namespace, by {self._wanted.monotonic / NSEC:+.6f} s; "
            f"they gain {error / 1e6:.3f} ms at most"
        )

    async def behind(self, destination: Destination, most: float) -> float:
        """Seconds that the process must stand still so that none of its clocks goes back: while its memory was copied,
        the destination's may have been the slower ones. Mostly none, or far less than it stands still for anyhow.
        Raises Failed: more than ``most``."""
        if not self._watched:
            return 0.0
        here, there, _ = await destination.clocks(self._own)
        pretended = float(faults.pretended("drift").partition("=")[2] or 0)
        seconds = behind(self._wanted, self._task, here, there) / NSEC + pretended
        if seconds > most:
            what = f"the clocks of {destination.name} have lost {seconds:.3f} s on ours while it was copied"
            raise Failed(f"{what}, and its own must not go back; allow more with --max-downtime, or try again")
        return seconds
