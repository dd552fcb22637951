"""When pre-copying stops, on model processes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrate.policy import Decision, Limits, PrecopyPolicy, Verdict
from migrate.report import Round

PAGE = 4096


@dataclass
class Model:
    """A process that writes to random pages of a working set, and a connection."""

    total: int  # pages
    working_set: int  # pages
    dirty_rate: float  # pages per second, before they begin to coincide
    bandwidth: float  # pages per second
    round_cost: float = 0.002  # seconds that even an empty round takes

    def dirtied_in(self, seconds: float) -> int:
        if not self.working_set:
            return 0
        return round(self.working_set * -math.expm1(-self.dirty_rate * seconds / self.working_set))

    def run(self, limits: Limits) -> tuple[list[Round], Verdict]:
        policy, rounds, pages = PrecopyPolicy(limits), [], self.total
        while True:
            seconds = self.round_cost + pages / self.bandwidth
            dirty = self.dirtied_in(seconds)
            rounds.append(Round(pages, pages * PAGE, seconds, dirty))
            verdict = policy.after(rounds[-1])
            if verdict.decision is not Decision.CONTINUE:
                return rounds, verdict
            pages = dirty

    def downtime(self, rounds: list[Round], limits: Limits) -> float:
        return limits.fixed_downtime + rounds[-1].dirty_pages_after / self.bandwidth


models = st.builds(
    Model,
    total=st.integers(1, 4 << 18),
    working_set=st.integers(0, 4 << 18),
    dirty_rate=st.floats(0, 1e6),
    bandwidth=st.floats(250, 1e6),  # 1 MB/s to 4 GB/s
    round_cost=st.floats(0.0005, 0.05),
)
limits = st.builds(
    Limits,
    max_downtime=st.floats(0.001, 5),
    max_rounds=st.integers(1, 60),
    no_converge=st.sampled_from(["stop", "continue"]),
)


@given(models, limits)
def test_it_ends_and_keeps_the_budget_or_does_as_told(model: Model, limits: Limits) -> None:
    rounds, verdict = model.run(limits)
    assert len(rounds) <= limits.max_rounds
    assert verdict.reason
    if limits.no_converge == "continue":
        assert verdict.decision is Decision.FREEZE
    elif verdict.decision is Decision.FREEZE:
        # The rate is measured over rounds with costs of their own, so the estimate errs on the safe side.
        assert model.downtime(rounds, limits) <= limits.max_downtime * 1.01
    else:
        assert verdict.expected_downtime > limits.max_downtime


@given(st.integers(1, 4 << 18), st.floats(1000, 1e6))
def test_an_idle_process_is_frozen_after_two_rounds(total: int, bandwidth: float) -> None:
    rounds, verdict = Model(total, 0, 0, bandwidth).run(Limits())
    assert verdict.decision is Decision.FREEZE and len(rounds) == 2


def test_a_small_process_that_is_a_little_busy_is_frozen_after_two_rounds() -> None:
    rounds, verdict = Model(total=2000, working_set=30, dirty_rate=3000, bandwidth=150_000).run(Limits())
    assert verdict.decision is Decision.FREEZE and len(rounds) == 2


def test_a_gigabyte_dirtied_at_100_mb_per_second_goes_on_below_the_budget() -> None:
    model = Model(total=262_144, working_set=262_144, dirty_rate=25_600, bandwidth=150_000)
    rounds, verdict = model.run(Limits())
    assert verdict.decision is Decision.FREEZE
    assert len(rounds) <= 6 and model.downtime(rounds, Limits()) < 0.010


def test_a_slow_round_trip_is_not_paid_for_nothing() -> None:
    """50 ms a round: what is dirtied in that time stays dirty however often one goes round."""
    model = Model(total=262_144, working_set=262_144, dirty_rate=25_600, bandwidth=150_000, round_cost=0.05)
    rounds, verdict = model.run(Limits())
    assert verdict.decision is Decision.FREEZE
    assert len(rounds) <= 5


@given(st.integers(1000, 4 << 18), st.floats(0.0, 0.5), st.floats(10_000, 1e6))
def test_what_can_converge_does(total: int, share: float, bandwidth: float) -> None:
    model = Model(total, total, share * bandwidth, bandwidth)
    _, verdict = model.run(Limits())
    assert verdict.decision is Decision.FREEZE


def test_rounds_that_stop_shrinking() -> None:
    model = Model(total=1 << 18, working_set=1 << 17, dirty_rate=1e6, bandwidth=100_000)
    rounds, verdict = model.run(Limits())
    assert verdict.decision is Decision.GIVE_UP
    assert len(rounds) <= 5
    assert "did not shrink" in verdict.reason and "300.0 ms are allowed" in verdict.reason
    assert model.run(Limits(no_converge="continue"))[1].decision is Decision.FREEZE


def test_max_rounds() -> None:
    model = Model(total=1 << 18, working_set=1 << 18, dirty_rate=80_000, bandwidth=100_000)
    rounds, verdict = model.run(Limits(max_rounds=3))
    assert (len(rounds), verdict.decision) == (3, Decision.GIVE_UP)
    assert "3 rounds were not enough" in verdict.reason


def test_a_burst_does_not_cost_the_budget_a_second_time() -> None:
    """Once the budget was met and passed up for a better time that did not come, it is taken when it is met again."""
    policy = PrecopyPolicy(Limits(max_downtime=0.3))
    rate = 100_000.0
    decisions = []
    for pages, dirty in ((100_000, 29_000), (29_000, 20_000), (20_000, 50_000), (50_000, 25_000)):
        decisions.append(policy.after(Round(pages, pages * PAGE, pages / rate, dirty)).decision)
    assert decisions == [Decision.CONTINUE, Decision.CONTINUE, Decision.CONTINUE, Decision.FREEZE]


@pytest.mark.parametrize("seconds", [0.0, 1e-9])
def test_rounds_that_take_no_time(seconds: float) -> None:
    policy = PrecopyPolicy(Limits())
    decisions = [policy.after(Round(0, 0, seconds, 0)).decision for _ in range(2)]
    assert decisions == [Decision.CONTINUE, Decision.FREEZE]


def test_what_a_round_is_besides_sending_does_not_count_where_there_is_little_to_send() -> None:
    """Nine processes on a slow machine, with 24 pages that are written to all the time."""
    policy = PrecopyPolicy(Limits())
    decisions = [policy.after(Round(pages, pages * PAGE, 2.0, 24), 0.1).decision for pages in (72, 24, 24)]
    assert decisions[-1] is Decision.FREEZE
    large = PrecopyPolicy(Limits())
    assert large.after(Round(8192, 8192 * PAGE, 2.0, 8192), 0.1).expected_downtime > 1
