"""A job that has no variables of the shell that submitted it."""

import pytest

from tests.helpers.cluster_case import Case, campaign


@campaign
@pytest.mark.parametrize("how", ["variable", "option"])
def test_a_run_without_the_variables_of_its_shell_saves_and_resumes(
    how: str, case: Case, reference_weights: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On two nodes, whose tasks need what the batch script exports; the job's output says what it does not have."""
    options = ("--sbatch", "export=NONE") if how == "option" else ()
    if how == "variable":
        monkeypatch.setenv("SBATCH_EXPORT", "NONE")
    case.start("--gpus", "1", "--nodes", "2", "--checkpoint.every_minutes", "0.005", *options)
    with case.slowed():
        case.wait_until(lambda: case.events("checkpoint"), "a checkpoint")
    case.requeue_and_finish()
    assert "submitted with --export=NONE: it has the variables of a login on this node" in case.job_output()
    assert case.weights() == reference_weights
