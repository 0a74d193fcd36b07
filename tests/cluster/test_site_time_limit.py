"""A site removes --signal from a job: it saves before its time limit all the same, and continues."""

from dataclasses import replace
from pathlib import Path

import pytest

from jobs.node.slurm_job import STOP_SECONDS
from jobs.node.time_limit import MARGIN_SECONDS, seconds_to_save
from tests.helpers.cluster_case import Case, campaign
from tests.helpers.site_wrappers import wrapped

WITHOUT_SIGNAL = 'for last; do :; done; sed "/^#SBATCH --signal/d" "$last" | {command}'


def test_a_job_stops_early_enough_to_save_and_a_short_one_at_half_of_its_time() -> None:
    """Never before Slurm's own signal, which comes at least 100 s before the limit."""
    assert seconds_to_save(24 * 3600) == STOP_SECONDS + MARGIN_SECONDS < 100
    assert seconds_to_save(120) == 60


@campaign
@pytest.mark.timeout(900)
@pytest.mark.parametrize("nodes", ["1", "2"])
def test_a_run_whose_signal_never_comes_saves_before_the_time_limit(
    nodes: str, case: Case, reference_weights: bytes, tmp_path: Path
) -> None:
    """After one of its two minutes; Slurm's own SIGTERM at the limit would end it without a requeue."""
    site = replace(case, slurm=wrapped(tmp_path / "bin", case.slurm, {"sbatch": WITHOUT_SIGNAL}))
    done = site.submit("--nodes", nodes, "--gpus", "2" if nodes == "1" else "1", "--time", "2")
    assert done.returncode == 0, done
    case.wait_until(lambda: case.steps_done() > 2, "some steps")
    with case.slowed(5):
        case.wait_until(lambda: case.events("stopped"), "the save")
    assert case.events("told to stop")[0]["signal"] == "SIGUSR2"
    assert "Slurm has not sent the requested signal: saving now" in case.job_output()
    case.finish()
    assert case.start_steps() == [0, case.stop_step()]
    assert case.weights() == reference_weights


@campaign
@pytest.mark.timeout(900)
def test_a_job_whose_time_limit_is_extended_does_not_stop_at_the_old_one(case: Case, tmp_path: Path) -> None:
    """It asks Slurm before it stops."""
    site = replace(case, slurm=wrapped(tmp_path / "bin", case.slurm, {"sbatch": WITHOUT_SIGNAL}))
    done = site.submit("--gpus", "2", "--time", "2")
    assert done.returncode == 0, done
    case.wait_until(lambda: case.steps_done() > 2, "some steps")
    case.slurm.call("scontrol", "update", f"JobId={case.job}", "TimeLimit=60")
    with case.slowed(3):
        case.finish()
    assert not case.events("told to stop")
