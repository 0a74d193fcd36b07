"""The time of every step of a rank is kept as a histogram, of which a report shows percentiles."""

import time
from pathlib import Path

import pytest

from tests.helpers.interrupted_runs import new_run_folder, run_attempt, short_config
from tests.helpers.ranks import run_ranks
from vit.run import step_times
from vit.run.jsonl import read_lines
from vit.run.step_times import StepTimes, merge, path_of, percentile


def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A list whose only value is what the clock shows."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_percentiles_are_those_of_the_steps_to_a_percent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """90 steps of 0.2 s, 9 of 0.5 s, one of 3 s; the first step after the start has no beginning."""
    now, times = clock(monkeypatch), StepTimes(tmp_path, 3)
    times.tick()
    for seconds in [0.2] * 90 + [0.5] * 9 + [3.0]:
        now[0] += seconds
        times.tick()
    times.write()
    counts, longest = merge(read_lines(path_of(tmp_path, 3)))
    assert sum(counts.values()) == 100
    assert longest == pytest.approx(3.0)
    shares = {0.5: 0.2, 0.9: 0.2, 0.95: 0.5, 0.99: 0.5, 1.0: 3.0}
    assert {share: percentile(counts, share) for share in shares} == pytest.approx(shares, rel=0.011)


def test_an_evaluation_is_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is what else happens between two steps that `exclude` separates."""
    now, times = clock(monkeypatch), StepTimes(tmp_path, 0)
    times.tick()
    now[0] += 60
    times.exclude()
    times.tick()
    now[0] += 0.1
    times.tick()
    times.write()
    counts, longest = merge(read_lines(path_of(tmp_path, 0)))
    assert sum(counts.values()) == 1
    assert longest == pytest.approx(0.1)


def test_a_killed_rank_loses_only_its_last_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines are written after 10 s, 20 s more, 40 s more, and at last every five minutes."""
    now, times = clock(monkeypatch), StepTimes(tmp_path, 0)
    for _ in range(3600):
        now[0] += 1
        times.tick()
    records = read_lines(path_of(tmp_path, 0))
    assert 3600 - 300 <= sum(merge(records)[0].values()) < 3600
    assert 10 < len(records) < 20


def test_damaged_histograms_are_left_out(tmp_path: Path) -> None:
    """Values that are no numbers, and lines of other programs."""
    damaged = [{"steps": 3}, {"steps": {"a": 1, "2": None, "-5": 2}}, {"longest": "x"}, {"longest": float("inf")}, {}]
    assert merge(damaged) == ({-5: 2}, 0.0)
    assert percentile({}, 0.5) is None


def test_a_disk_that_cannot_be_written_disturbs_no_step(tmp_path: Path) -> None:
    """The folder of the logs is a file."""
    (tmp_path / "logs").write_text("")
    times = StepTimes(tmp_path / "logs", 0)
    times.tick()
    times.tick()
    times.write()


def test_a_step_costs_less_than_ten_microseconds(tmp_path: Path) -> None:
    """Measured over many steps; the fastest of some tries, because other processes may disturb it."""

    def seconds() -> float:
        times, began = StepTimes(tmp_path, 0), time.perf_counter()
        for _ in range(10_000):
            times.tick()
        return (time.perf_counter() - began) / 10_000

    assert min(seconds() for _ in range(5)) < 10e-6
    assert step_times.FIRST_WRITE_SECONDS > 1  # nothing was written meanwhile


def test_each_rank_of_a_run_records_its_steps(betons: Path, tmp_path: Path) -> None:
    """Six steps with an evaluation after the third: two times before it, two after it."""
    run = new_run_folder(tmp_path / "run")
    run_ranks(2, run_attempt, short_config(betons), run)
    for rank in range(2):
        counts, longest = merge(read_lines(path_of(run / "logs", rank)))
        assert sum(counts.values()) == 4
        assert longest > 0
