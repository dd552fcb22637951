"""What every test gets: a time limit, a check for leaks where the system is touched, two hosts for those who ask."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from types import FrameType

import hypothesis
import pytest

from migrate.engine.kernel.syscalls import NUMBERS
from tests import hosts as bed
from tests import leaks
from tests.hosts import Pair
from tests.tasks import PATIENCE
from tests.victims import Victims

CI = os.environ.get("CI") == "true"
HERE = Path(__file__).parent
CHECKED = (HERE / "kernel", HERE / "migration", HERE / "testbed")
LIMIT = 120.0
MOVE = "move between kernels"
_up: list[Pair] = []


def pytest_configure(config: pytest.Config) -> None:
    """Before anything is started: whatever is orphaned comes to us, so that it is seen."""
    leaks.become_subreaper()
    _heed_all_signals()
    # how long an example takes is a matter of what else the machine does, and is not what a test asks
    slow = [hypothesis.HealthCheck.too_slow]
    hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=slow)
    hypothesis.settings.load_profile("untimed")


def _heed_all_signals() -> None:
    """make(1) starts its commands with signals 32 and 33 ignored, and so would be all that a test starts. They are
    the C library's own, so that sigaction(3) does not touch them."""
    default = bytes(32)  # struct kernel_sigaction: SIG_DFL, no flags
    for number in (32, 33):
        ctypes.CDLL(None).syscall(NUMBERS["rt_sigaction"], number, default, None, 8)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was moved between kernels, what was decided, and how long it took: nothing of that is a test on machines
    like these. It comes with the reports of tests, which may have been another process's."""
    reports = (report for kind in terminalreporter.stats.values() for report in kind)
    ends = (report for report in reports if isinstance(report, pytest.TestReport) and report.when == "teardown")
    if lines := [str(line) for report in ends for name, line in report.user_properties if name == MOVE]:
        terminalreporter.section("moves between kernels")
        for line in lines:
            terminalreporter.write_line(line)


def _promised(report: pytest.TestReport | pytest.CollectReport) -> None:
    # Where CI promises the environment, "cannot be tested here" is not an answer.
    if CI and report.outcome == "skipped" and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.longrepr = f"skipped, and CI=true does not allow that: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A skip is a failure in CI."""
    report = yield
    _promised(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a whole file that skips itself."""
    report = yield
    _promised(report)
    return report


class TooLong(BaseException):
    """Not an Exception: `except Exception` in the code under test must not swallow it."""


@pytest.fixture(autouse=True)
def time_limit(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that takes too long, instead of waiting for ever: ``@pytest.mark.timeout(seconds)`` says how long."""
    assert threading.current_thread() is threading.main_thread()
    marker = request.node.get_closest_marker("timeout")
    seconds = (float(marker.args[0]) if marker else LIMIT) * PATIENCE

    def expired(number: int, frame: FrameType | None) -> None:
        raise TooLong(f"{request.node.nodeid} was not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _inits() -> list[int]:
    return [host.init for pair in _up for host in (pair.a, pair.b)]


def pytest_collection_finish() -> None:
    """The hundred thousand objects that pytest has made of the tests by now stay to the end. `nothing_left_behind` need
    not have the collector walk through them twice in every test, which took as long as the test itself."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that touches the system and leaves something behind; see tests/leaks.py."""
    if not any(directory in request.path.parents for directory in CHECKED):
        yield
        return
    gc.collect()  # what an earlier test dropped is not this one's
    before = leaks.take(_inits)
    yield
    gc.collect()
    left = leaks.settle(before, _inits)
    leaks.kill_new(before)
    if left:
        pytest.fail("left behind:\n  " + "\n  ".join(left), pytrace=False)


@pytest.fixture(scope="session")
def hosts() -> Iterator[Pair]:
    """Two hosts that all tests share; take `two_hosts`, which cleans up between them."""
    with bed.two_hosts() as pair:
        _up.append(pair)
        yield pair
        _up.remove(pair)


@pytest.fixture
def two_hosts(hosts: Pair) -> Iterator[Pair]:
    """Two hosts with their cable plugged in; what the test started or adopted there is killed at its end."""
    yield hosts
    hosts.finish()


@pytest.fixture(scope="session")
def victims(tmp_path_factory: pytest.TempPathFactory) -> Victims:
    """Compiles tests/victims/*.c when asked for one."""
    return Victims()
