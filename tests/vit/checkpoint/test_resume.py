"""A run that is interrupted ends as the run that was left alone, on four ranks: two would hide a wrong order."""

import json
import math
import os
import signal
import time
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.data_sets import small_config
from tests.helpers.ranks import run_ranks
from vit.checkpoint.format import find_checkpoints, read_manifest, step_of
from vit.checkpoint.load import load_checkpoint
from vit.checkpoint.skipped_steps import recipe_digest
from vit.config.schema import Config
from vit.distributed.agreement import Agreement
from vit.distributed.world import World, join
from vit.run.clock import Clock
from vit.run.folder import RunFolder
from vit.run.jsonl import read_lines
from vit.train import Outcome, Trainer
from vit.training.step import Augmented

STEPS = 6
BAD_SHARD = 2
BACK = -1  # a fault's step: once a step was found out to be bad, before its checkpoint is there again
Fault = tuple[int, int, int]  # at this step, on this rank (-1: all), this signal


class FaultyTrainer(Trainer):
    """Sends itself a real signal in the middle of a step, and notes the samples that it trains on.

    Of the steps in `bad`, the third micro-batch of the batch has pixels that are no numbers; a SIGKILL then comes only
    once one of them was found out.
    """

    fault: Fault | None = None
    bad: tuple[int, ...] = ()

    def train_step(self, step: int, batch: Augmented) -> None:
        if step in self.bad and BAD_SHARD in (mine := self.world.my_micro_batches(self.cfg.micro_batches)):
            batch.micro_batches[BAD_SHARD - mine[0]][0].fill_(math.nan)
        if self.bad and not self.state.skipped and self.fault is not None and self.fault[2] == signal.SIGKILL:
            return super().train_step(step, batch)
        note = self.run.path / f"samples-{self.world.rank}.jsonl"
        with note.open("a") as file:
            file.write(json.dumps({"step": step, "samples": batch.samples.tolist()}) + "\n")
        if self.fault is not None and self.fault[2] == signal.SIGKILL:
            self.saver.finish()  # on all ranks: however slow the disk is, what a kill finds is the same
        if self.fault is not None and self.fault[0] == step and self.fault[1] in {self.world.rank, -1}:
            os.kill(os.getpid(), self.fault[2])
        super().train_step(step, batch)

    def restore(self) -> int | None:
        if self.fault is not None and self.fault[0] == BACK:
            os.kill(os.getpid(), self.fault[2])
        return super().restore()


def attempt(
    cfg: Config,
    run: Path,
    fault: Fault | None = None,
    accepted: tuple[str, ...] = (),
    bad: tuple[int, ...] = (),
) -> str:
    """One attempt on this rank, up to its end or to the fault's."""
    with join(cfg) as world:
        trainer = FaultyTrainer(cfg, RunFolder(run), world, Clock(time.time()), list(accepted))
        trainer.fault, trainer.bad = fault, bad
        outcome = trainer.train()
        trainer.agreement.close()
        trainer.saver.close()
        return outcome.value


def recipe(betons: Path, **changes: Any) -> Config:
    """Six steps of four micro-batches with everything that draws random numbers, and averaged weights."""
    cfg = small_config(betons)
    return replace(
        cfg,
        epochs=1,
        global_batch=96,  # 512 samples: 5.33 steps an epoch, so that the last batch straddles two epochs
        micro_batch=24,
        model=replace(cfg.model, dropout=0.1, drop_path=0.1),
        augment=replace(cfg.augment, randaugment_ops=1, mixup=0.2, cutmix=1.0, label_smoothing=0.1),
        optim=replace(cfg.optim, lr=3e-3, clip_norm=1.0, ema_decay=0.9),
        log=replace(cfg.log, every_steps=1, eval_every_epochs=0.5, samples=True),
        **changes,
    )


def prepared(run: Path) -> Path:
    run.mkdir(parents=True, exist_ok=True)
    return run


def result(run: Path) -> dict[str, torch.Tensor]:
    """All that the finished run remembers."""
    newest = find_checkpoints(RunFolder(run).checkpoints)[0]
    assert newest.name == f"step-{STEPS:08d}"
    return load_checkpoint(newest)[0]


def curve(run: Path) -> list[dict[str, float]]:
    """The learning curve without what depends on the clock."""
    timed = {"images_per_second", "seconds_left"}
    return [{k: v for k, v in r.items() if k not in timed} for r in read_lines(RunFolder(run).metrics)]


def samples(run: Path) -> dict[int, list[int]]:
    """The samples of each step, over all ranks in their order; a step that was run again must have had the same."""
    out: dict[int, dict[int, list[int]]] = {}
    for note in sorted(run.glob("samples-*.jsonl")):
        for record in read_lines(note):
            before = out.setdefault(record["step"], {}).setdefault(int(note.stem[8:]), record["samples"])
            assert before == record["samples"]
    return {step: [i for rank in sorted(ranks) for i in ranks[rank]] for step, ranks in out.items()}


def written_down(run: Path) -> list[tuple[int, int, list[int]]]:
    """What the run's own log says of its samples: step, micro-batch, samples."""
    return sorted((r["step"], r["shard"], r["samples"]) for r in read_lines(RunFolder(run).samples))


def assert_same(run: Path, undisturbed: Path) -> None:
    ours, theirs = result(run), result(undisturbed)
    assert ours.keys() == theirs.keys()
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []
    assert curve(run) == curve(undisturbed)
    assert written_down(run) == written_down(undisturbed)


@pytest.fixture(scope="module")
def undisturbed(betons: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that was left alone, on four ranks."""
    run = prepared(tmp_path_factory.mktemp("undisturbed"))
    assert run_ranks(4, attempt, recipe(betons), run) == [Outcome.FINISHED] * 4
    return run


def test_an_epoch_uses_each_sample_once(undisturbed: Path) -> None:
    """512 samples in five batches of 96 and a third of the next; none twice, none left out."""
    order = [sample for _, ids in sorted(samples(undisturbed).items()) for sample in ids]
    assert len(order) == STEPS * 96
    assert sorted(order[:512]) == list(range(512))
    assert [sample for _, _, ids in written_down(undisturbed) for sample in ids] == order


@pytest.mark.parametrize("step", range(STEPS))
def test_a_run_stopped_after_any_step_ends_with_the_same_bits(
    step: int, betons: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """One rank of four gets SIGTERM: all of them save and leave, and the run goes on as if nothing had been."""
    run = prepared(tmp_path / "run")
    stopped = run_ranks(4, attempt, recipe(betons), run, (step, step % 4, signal.SIGTERM))
    assert stopped == [Outcome.STOPPED] * 4
    assert run_ranks(4, attempt, recipe(betons), run) == [Outcome.FINISHED] * 4
    assert_same(run, undisturbed)
    assert samples(run) == samples(undisturbed)


def test_a_killed_run_goes_on_from_its_checkpoint(betons: Path, undisturbed: Path, tmp_path: Path) -> None:
    """SIGKILL of all ranks, twice: what was after the newest checkpoint is done again, and the curve has no double."""
    run, cfg = prepared(tmp_path / "run"), recipe(betons)
    often = replace(cfg, checkpoint=replace(cfg.checkpoint, every_minutes=1e-6))
    assert run_ranks(4, attempt, often, run, (3, -1, signal.SIGKILL)) == [-signal.SIGKILL] * 4
    saved = find_checkpoints(RunFolder(run).checkpoints)
    assert saved, "no checkpoint was written before the kill"
    assert run_ranks(4, attempt, often, run, (4, -1, signal.SIGKILL)) == [-signal.SIGKILL] * 4
    assert run_ranks(4, attempt, cfg, run) == [Outcome.FINISHED] * 4
    assert_same(run, undisturbed)


@pytest.mark.parametrize("ranks", [(4, 2, 1), (1, 4), (2, 4)])
def test_a_run_may_move_to_another_number_of_ranks(
    ranks: tuple[int, ...], betons: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """The same samples in each step and the same bits at the end, though it stopped and changed its ranks."""
    run, cfg = prepared(tmp_path / "run"), recipe(betons)
    for i, count in enumerate(ranks[:-1]):
        stopped = run_ranks(count, attempt, cfg, run, (1 + 2 * i, 0, signal.SIGUSR2))
        assert stopped == [Outcome.STOPPED] * count
    assert run_ranks(ranks[-1], attempt, cfg, run) == [Outcome.FINISHED] * ranks[-1]
    assert_same(run, undisturbed)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_resumes_with_its_scaler(precision: str, betons: Path, tmp_path: Path) -> None:
    """On 4, 2 and 1 ranks, the same bits; fp16's scale and the good steps that it has counted go on too."""
    cfg = recipe(betons, precision=precision)
    undisturbed, run = prepared(tmp_path / "undisturbed"), prepared(tmp_path / "run")
    assert run_ranks(4, attempt, cfg, undisturbed) == [Outcome.FINISHED] * 4
    assert run_ranks(4, attempt, cfg, run, (1, 0, signal.SIGTERM)) == [Outcome.STOPPED] * 4
    assert run_ranks(2, attempt, cfg, run, (3, 1, signal.SIGTERM)) == [Outcome.STOPPED] * 2
    assert run_ranks(1, attempt, cfg, run) == [Outcome.FINISHED]
    assert_same(run, undisturbed)
    scalers = [
        read_manifest(find_checkpoints(RunFolder(r).checkpoints)[0])["about"]["scaler"] for r in (run, undisturbed)
    ]
    assert scalers[0] == scalers[1]
    assert scalers[0].get("_growth_tracker") == (STEPS if precision == "fp16" else None)


def test_a_signal_during_evaluation_is_obeyed_there(betons: Path, undisturbed: Path, tmp_path: Path) -> None:
    """The run does not wait for the end of a long evaluation, and evaluates that step when it is resumed."""
    run, cfg = prepared(tmp_path / "run"), recipe(betons)
    assert set(run_ranks(4, stopped_in_evaluation, cfg, run)) == {1}
    assert [r for r in curve(run) if "val_top1" in r] == []
    assert run_ranks(4, attempt, cfg, run) == [Outcome.FINISHED] * 4
    assert_same(run, undisturbed)


def stopped_in_evaluation(cfg: Config, run: Path) -> int:
    """Rank 3 gets SIGUSR1 in round 0 of its first evaluation; the last round that was begun."""
    with join(cfg) as world:
        trainer = Trainer(cfg, RunFolder(run), world, Clock(time.time()), [])
        rounds = []
        batches = trainer.val_data.batches

        def interrupted() -> Any:
            for i, batch in enumerate(batches()):
                if world.rank == 3 and i == 0:
                    os.kill(os.getpid(), signal.SIGUSR1)
                rounds.append(i)
                yield batch

        trainer.val_data.batches = interrupted  # type: ignore[method-assign]
        assert trainer.train() is Outcome.STOPPED
        trainer.agreement.close()
        return rounds[-1]


def test_a_checkpoint_from_before_a_setting_was_there_goes_on_as_it_was(
    betons: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """What it does not say was as the default is now: that goes on, to the same bits, and anything else is refused."""
    run, cfg = prepared(tmp_path / "run"), recipe(betons)
    run_ranks(4, attempt, cfg, run, (4, 1, signal.SIGTERM))
    for path in find_checkpoints(RunFolder(run).checkpoints):
        manifest = read_manifest(path)
        for setting in ("data.interpolation", "augment.randaugment", "augment.randaugment_deviation"):
            del manifest["about"]["recipe"][setting]
        text = json.dumps(manifest).encode()
        (path / "manifest.json").write_bytes(b"%08x\n%s" % (zlib.crc32(text), text))
    other = replace(cfg, data=replace(cfg.data, interpolation="bicubic"))
    with pytest.raises(ValueError, match=r"data\.interpolation: bilinear in the checkpoint, bicubic now"):
        run_ranks(1, attempt, other, run)
    assert run_ranks(4, attempt, cfg, run) == [Outcome.FINISHED] * 4
    assert_same(run, undisturbed)


def test_a_damaged_checkpoint_is_set_aside_and_named(betons: Path, undisturbed: Path, tmp_path: Path) -> None:
    """One flipped bit in the newest: the run goes on from the one before it and still ends with the same bits."""
    run, cfg = prepared(tmp_path / "run"), recipe(betons)
    often = replace(cfg, checkpoint=replace(cfg.checkpoint, every_minutes=1e-6, keep=3))
    run_ranks(4, attempt, often, run, (4, 1, signal.SIGTERM))
    newest, older, *_ = find_checkpoints(RunFolder(run).checkpoints)
    with (newest / "part-000.bin").open("r+b") as file:
        file.seek(1000)
        byte = file.read(1)[0]
        file.seek(1000)
        file.write(bytes([byte ^ 16]))
    assert run_ranks(4, attempt, cfg, run) == [Outcome.FINISHED] * 4
    assert_same(run, undisturbed)
    damaged = [e for e in RunFolder(run).events() if e["event"] == "damaged checkpoint"]
    assert len(damaged) == 1
    assert newest.name in damaged[0]["problem"]
    assert older.exists() or len(find_checkpoints(RunFolder(run).checkpoints)) == cfg.checkpoint.keep


def test_the_best_the_newest_and_every_nth_epoch_are_kept(betons: Path, tmp_path: Path) -> None:
    """The best one, of the averaged weights, is there though it is old; what is kept holds across a restart."""
    run, cfg = prepared(tmp_path / "run"), recipe(betons)
    # An average that follows at once, and a rate that ruins what was learnt in the first steps.
    cfg = replace(cfg, epochs=2, optim=replace(cfg.optim, lr=0.3, ema_decay=0.01), seed=3)
    cfg = replace(cfg, log=replace(cfg.log, eval_every_epochs=96 / 512))  # each step
    cfg = replace(cfg, checkpoint=replace(cfg.checkpoint, keep=1, keep_every_epochs=0.75))
    run_ranks(2, attempt, cfg, run, (6, 0, signal.SIGTERM))
    assert run_ranks(2, attempt, cfg, run) == [Outcome.FINISHED] * 2
    scores = {r["step"]: r["val_top1_average"] for r in curve(run) if "val_top1" in r}
    best = max(scores, key=lambda step: (scores[step], -step))
    there = {step_of(path) for path in find_checkpoints(RunFolder(run).checkpoints)}
    assert best not in {4, 8, 10, 11}, "another seed: this best one would be kept in any case"
    assert there == {best, 4, 8, 11}  # of 512 samples in batches of 96, 0.75 and 1.5 epochs are 4 and 8 steps


def test_another_recipe_or_data_set_is_refused_with_the_difference(betons: Path, tmp_path: Path) -> None:
    """Nobody trains the second half of a run with another learning rate by accident; who wants it, says so."""
    run, cfg = prepared(tmp_path / "run"), recipe(betons)
    run_ranks(1, attempt, cfg, run, (0, 0, signal.SIGTERM))
    other = replace(cfg, optim=replace(cfg.optim, lr=1e-4), data=replace(cfg.data, train=betons / "val.beton"))
    with pytest.raises(
        Exception, match=r"(?s)data\.samples: 512 in the checkpoint, 100 now.*optim\.lr: 0\.003 .*0\.0001"
    ):
        run_ranks(1, attempt, other, run)
    other = replace(other, data=cfg.data)
    assert run_ranks(1, attempt, other, run, None, ("optim.lr",)) == [Outcome.FINISHED]


def test_weights_that_are_not_numbers_are_never_saved(betons: Path, tmp_path: Path) -> None:
    """Though the loss is only looked at now and then, and a checkpoint is due at every step."""
    run, cfg = prepared(tmp_path / "run"), recipe(betons)
    often = replace(cfg, checkpoint=replace(cfg.checkpoint, every_minutes=1e-6), log=replace(cfg.log, every_steps=6))
    wild = replace(often, optim=replace(cfg.optim, lr=1e30, clip_norm=0.0, warmup_epochs=0.0, max_skipped=1))
    run_ranks(2, attempt, cfg, run, (1, 0, signal.SIGTERM))
    with pytest.raises(FloatingPointError, match=r"is not finite, after .* a lower optim\.lr may help"):
        run_ranks(2, attempt, wild, run, None, ("optim.lr", "optim.clip_norm"))
    saved = find_checkpoints(RunFolder(run).checkpoints)
    assert saved
    for folder in saved:
        assert all(tensor.isfinite().all() for tensor in load_checkpoint(folder)[0].values()), folder


@pytest.fixture(scope="module")
def without(betons: Path, undisturbed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that had it in its record from the start that step 4 is to be skipped."""
    run = prepared(tmp_path_factory.mktemp("without"))
    about = read_manifest(find_checkpoints(RunFolder(undisturbed).checkpoints)[0])["about"]
    RunFolder(run).record("skipped", step=4, why="a test", recipe=recipe_digest(about["recipe"]))
    assert run_ranks(4, attempt, recipe(betons), run) == [Outcome.FINISHED] * 4
    return run


def often(cfg: Config, look: int) -> Config:
    """A checkpoint at each step, the loss looked at for the log at every n-th."""
    return replace(cfg, checkpoint=replace(cfg.checkpoint, every_minutes=1e-6), log=replace(cfg.log, every_steps=look))


def assert_skipped(run: Path, steps: list[int]) -> None:
    """They are in the newest checkpoint, once each in the ledger, and nothing of them is on the curve."""
    assert read_manifest(find_checkpoints(RunFolder(run).checkpoints)[0])["about"]["skipped"] == steps
    assert [e["step"] for e in RunFolder(run).events() if e["event"] == "skipped"] == steps
    assert not {r["step"] for r in curve(run) if "loss" in r} & set(steps)
    assert not {step for step, _, _ in written_down(run)} & set(steps)


@pytest.mark.parametrize("saves", [True, False])
def test_a_batch_that_cannot_be_trained_on_is_left_out(
    saves: bool, betons: Path, undisturbed: Path, without: Path, tmp_path: Path
) -> None:
    """Back to the newest checkpoint, or the beginning; the rest as if it had been known from the start."""
    run, cfg = prepared(tmp_path / "run"), recipe(betons)
    cfg = often(cfg, 1) if saves else cfg
    assert run_ranks(4, attempt, cfg, run, None, (), (3,)) == [Outcome.FINISHED] * 4
    assert_same(run, without)
    assert_skipped(run, [4])
    assert any(not torch.equal(t, result(undisturbed)[name]) for name, t in result(run).items())


@pytest.mark.parametrize(("step", "ranks"), [(BACK, (4, 1)), (3, (4, 2)), (5, (2, 4))])
def test_a_kill_after_a_batch_was_left_out_changes_nothing(
    step: int, ranks: tuple[int, int], betons: Path, without: Path, tmp_path: Path
) -> None:
    """On the way back, at the step itself, after it; then on fewer ranks or more."""
    run, cfg = prepared(tmp_path / "run"), recipe(betons)
    killed = run_ranks(ranks[0], attempt, cfg, run, (step, -1, signal.SIGKILL), (), (3,))
    assert killed == [-signal.SIGKILL] * ranks[0]
    assert run_ranks(ranks[1], attempt, often(cfg, 1), run, None, (), (3,)) == [Outcome.FINISHED] * ranks[1]
    assert_same(run, without)
    assert_skipped(run, [4])


def test_the_first_bad_step_is_found_though_the_loss_is_looked_at_late(
    betons: Path, without: Path, tmp_path: Path
) -> None:
    """By then all weights are ruined; a stop that comes first finds it out too, and saves none of them."""
    run, cfg = prepared(tmp_path / "run"), recipe(betons)
    late = replace(cfg, log=replace(cfg.log, every_steps=6, eval_every_epochs=9))
    assert run_ranks(4, attempt, late, run, (4, 0, signal.SIGTERM), (), (3,)) == [Outcome.STOPPED] * 4
    assert run_ranks(4, attempt, late, run, None, (), (3,)) == [Outcome.FINISHED] * 4
    ours, theirs = result(run), result(without)
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []
    assert_skipped(run, [4])


def test_a_run_of_bad_batches_ends_at_the_bound_and_another_recipe_starts_anew(betons: Path, tmp_path: Path) -> None:
    """It names the steps; what failed under one learning rate is not left out under another."""
    run, cfg = prepared(tmp_path / "run"), recipe(betons)
    cfg = replace(cfg, optim=replace(cfg.optim, max_skipped=2))
    message = r"^the loss of step 6 is not finite, after steps 3, 5 were .*max_skipped allows 2; a lower optim\.lr"
    with pytest.raises(FloatingPointError, match=message):
        run_ranks(4, attempt, cfg, run, None, (), (2, 4, 5))
    with pytest.raises(FloatingPointError, match=message):  # typed again
        run_ranks(4, attempt, cfg, run, None, (), (2, 4, 5))
    calmer = replace(cfg, optim=replace(cfg.optim, lr=1e-4))
    assert run_ranks(4, attempt, calmer, run, None, ("optim.lr",), ()) == [Outcome.FINISHED] * 4
    about = read_manifest(find_checkpoints(RunFolder(run).checkpoints)[0])["about"]
    assert about["skipped"] == [3], "as it was before the checkpoint that was left, which is of step 4"


def test_a_second_ctrl_c_leaves_at_once() -> None:
    """An impatient person is obeyed; a Ctrl-C that arrives twice at the same moment is one."""
    assert run_ranks(1, interrupted_twice, 0.1) == ["stops at the next step"]
    with pytest.raises(RuntimeError, match="exit code 130"):
        run_ranks(1, interrupted_twice, 2.2)


def interrupted_twice(pause: float) -> str:
    agreement = Agreement(World(rank=0, size=1, local_size=1, device=torch.device("cpu")))
    agreement.install()
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(pause)
    assert agreement.look().stop
    return "stops at the next step"
