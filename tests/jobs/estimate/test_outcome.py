"""What was estimated and what came, as the report and `status.py` show it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs.page.document import run_page as report_page
from jobs.page.run_data import read_run
from jobs.watch.estimate_outcome import outcome
from tests.helpers.local_runs import run_status
from tests.helpers.report_runs import ESTIMATED, FIRST, ledger, write_run
from vit.history.attempts import read_attempts
from vit.history.resources import Usage
from vit.run.folder import RunFolder


def until_stopped() -> list[dict[str, Any]]:
    """The events of the first attempt, which was preempted at step 400."""
    names = [event["event"] for event in ledger()]
    return ledger()[: names.index("stopped") + 1]


def test_a_run_without_an_estimate_shows_nothing(tmp_path: Path) -> None:
    """As those of older versions."""
    run = write_run(tmp_path / "run")
    assert b'id="estimate"' not in report_page(read_run(run))
    assert "estimated" not in run_status(tmp_path, str(run)).stdout


def test_the_report_and_status_compare_the_estimate_with_what_came(tmp_path: Path) -> None:
    """Speed, time on the nodes, GPU-hours, queue, and where the difference came from."""
    run = write_run(tmp_path / "run", events=[ESTIMATED, *ledger()])
    events = RunFolder(run).events()
    found = outcome(events, read_attempts(events))
    assert found is not None and found.finished
    figures = {figure.name: figure for figure in found.figures}
    spent = read_run(run).time
    rate = 64_000 / (spent.seconds["step"] + spent.seconds["data"])
    assert figures["images/s"].ratio == rate / 200
    assert figures["time on the nodes"].ratio == spent.on_nodes / 350
    assert figures["GPU-hours"].ratio == figures["time on the nodes"].ratio
    assert figures["queue"].came != "0 s"
    assert "lost" in found.difference and "interruption" in found.difference
    page = report_page(read_run(run)).decode()
    section = page[page.index('id="estimate"') :]
    for text in ("Estimated and measured", "images/s", "GPU-hours", f"{rate / 200:.2f}", found.difference):
        assert text in section
    assert "&lt;b&gt;before" in section and "<b>before" not in page
    status = run_status(tmp_path, str(run)).stdout
    assert f"time on the nodes: 5:50 estimated, {figures['time on the nodes'].came} came" in status
    assert found.difference.split(":")[0] in status
    assert "estimate: speed as in run <b>before</b>" in status


def test_an_unfinished_run_is_compared_as_far_as_it_came(tmp_path: Path) -> None:
    """After 400 of 1000 steps: 40 % of the steps and evaluations, and one start."""
    events = [ESTIMATED, *until_stopped()]
    found = outcome(events, read_attempts(events))
    assert found is not None and not found.finished
    figures = {figure.name: figure for figure in found.figures}
    assert figures["time on the nodes"].estimated == "2:26", "0.4 (320 + 20) + 10 s"
    assert figures["images/s"].came == "160" and figures["images/s"].ratio == 0.8, "25,600 images in 160 s"


def test_repeating_the_command_keeps_the_first_estimate(tmp_path: Path) -> None:
    """Of the same length and size; a longer run, or another number of GPUs, has an estimate of its own."""
    before, later = until_stopped(), ledger()[len(until_stopped()) :]
    resumed = ESTIMATED | {"step": 400, "images_per_second": 900.0, "time": before[-1]["time"] + 1}
    events = [ESTIMATED, *before, resumed, before[0] | {"time": resumed["time"]}, *later]
    found = outcome(events, read_attempts(events))
    assert found is not None and found.figures[0].estimated == "200"
    events[len(before) + 1] = resumed | {"gpus": 1}
    found = outcome(events, read_attempts(events))
    assert found is not None and found.figures[0].estimated == "900"
    assert "ran on 2 instead of 1 rank" in found.difference


def test_of_several_sizes_that_on_which_it_ran_longest_is_compared(tmp_path: Path) -> None:
    """One job each was submitted; all attempts ran on two ranks."""
    sizes = [ESTIMATED | {"gpus": gpus, "images_per_second": 100.0 * gpus} for gpus in (4, 2, 1)]
    events = [sizes[0] | {"sizes": sizes}, *ledger()]
    found = outcome(events, read_attempts(events))
    assert found is not None and found.figures[0].estimated == "200"
    assert "instead of" not in found.difference


def test_ranks_that_shared_their_cores_are_named() -> None:
    """Each of two ranks had half a core; a rank that had a core to itself, or ran on a GPU, is not slower for that."""
    usage = Usage(node="n1", began=FIRST, seconds=100.0, cores=16, cpu=1 / 16)
    events = [ESTIMATED | {"device": "cpu"}, *ledger()]
    found = outcome(events, read_attempts(events), [usage])
    assert found is not None and "each rank had 50% of a core: others used this machine too" in found.difference
    assert any(figure.name == "rank-hours" for figure in found.figures)
    for own, stored in ((replace(usage, cpu=2 / 16), events), (usage, [ESTIMATED, *ledger()])):
        found = outcome(stored, read_attempts(stored), [own])
        assert found is not None and "core" not in found.difference


def test_a_damaged_estimate_shows_nothing(tmp_path: Path) -> None:
    """A ledger may contain anything."""
    events = ledger()
    for damaged in (
        {"seconds": 3},
        {"steps": "many"},
        {"images_per_second": float("nan")},
        {"images": None},
        {"steps": 0, "sizes": [3]},
    ):
        found = [ESTIMATED | damaged, *events]
        assert outcome(found, read_attempts(found)) is None
        write_run(tmp_path / "run", events=found)
        assert b'id="estimate"' not in report_page(read_run(tmp_path / "run"))


def test_an_estimate_is_no_sign_of_life(tmp_path: Path) -> None:
    """The command that submits a killed run again does not make its last attempt longer."""
    events = ledger()[:3]
    events[2] |= {"time": FIRST}
    again = [*events, ESTIMATED | {"time": FIRST + 9000}]
    assert read_attempts(again)[0].duration == read_attempts(events)[0].duration
