"""`make pets` on a cluster: the same command submits the training, and draws the attention maps when it has ended."""

from pathlib import Path

from tests.helpers.clone import Clone
from tests.helpers.cluster_case import Case
from tests.helpers.photographs import write_pets
from tests.helpers.waiting import wait_for
from vit.run.folder import RunFolder

ARGUMENTS = (
    "--cluster slurm --device cpu --cpus-per-gpu 1 --time 1:00:00 --partition low --epochs 20 --global_batch 16 "
    "--model.width 48 --model.depth 2 --model.mlp_dim 96 --log.eval_every_epochs 20"
)


def test_pets_are_submitted_and_their_attention_is_drawn_by_the_same_command(case: Case, tmp_path: Path) -> None:
    """Before the end it says what to do; nothing is trained twice."""
    folder = tmp_path / "clone"
    folder.mkdir()
    clone = Clone(folder)
    write_pets(folder / "data" / "pets")
    code, output = clone.make("pets", f"ARGS={ARGUMENTS}", **case.slurm.environment)
    assert code == 0, output
    assert "--gpus 1" in output and "submitted; the job is requeued as needed" in output
    assert output.splitlines()[-1].startswith("when this run is finished, run the same command again")
    run = RunFolder(folder / "runs" / "pets")
    wait_for(run.finished, "the end of the run", 200)
    case.slurm.wait_until_idle()
    code, output = clone.make("pets", f"ARGS={ARGUMENTS}", **case.slurm.environment)
    assert code == 0, output
    assert "runs/pets is complete." in output and "of 8 images right" in output
    assert (run.path / "attention.png").is_file()
    assert len([event for event in run.events() if event["event"] == "submitted"]) == 1
