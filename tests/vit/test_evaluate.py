"""Evaluation: exact scores of the whole data set, on any number of ranks."""

import functools
import json
import os
import signal
from dataclasses import asdict, replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.helpers.data_sets import JPEGS, VAL, small_config
from tests.helpers.finished_runs import make_finished_run, save_state
from tests.helpers.loading import overwrite
from tests.helpers.ranks import run_ranks
from vit.augment.pipeline import normalize
from vit.checkpoint.train_state import TrainState
from vit.config.schema import Config
from vit.data.beton import open_beton
from vit.data.loader import ValData
from vit.distributed.stop_signals import Agreement
from vit.distributed.world import World, join_process_group
from vit.evaluate import main
from vit.model.vision_transformer import VisionTransformer
from vit.run.evaluation_file import find_evaluations, read_evaluation
from vit.training.scoring import Score, autocast, evaluate


def config(betons: Path) -> Config:
    """Twelve micro-batches, a multiple of 1, 2, 3 and 4 ranks; 100 images in 13 batches of 8."""
    return replace(small_config(betons), global_batch=96)


def random_model(cfg: Config) -> nn.Module:
    """Random weights, so large that all logits differ, and dropout, which evaluation must disable."""
    torch.manual_seed(4)
    model = VisionTransformer(replace(cfg.model, dropout=0.5, drop_path=0.5))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def score_on_rank(cfg: Config) -> Score | None:
    autocast = functools.partial(torch.autocast, "cpu", enabled=False)
    with join_process_group(cfg) as world:
        return evaluate(random_model(cfg), ValData(cfg, world), cfg, world, autocast, stop=lambda: False)


@pytest.fixture(scope="module")
def score_of_one_rank(betons: Path) -> Score:
    (found,) = run_ranks(1, score_on_rank, config(betons))
    return found


def test_the_score_equals_a_direct_computation(score_of_one_rank: Score, betons: Path) -> None:
    """From one batch of all images: the position of the label's logit among all logits, and the mean loss."""
    cfg = replace(config(betons), micro_batch=VAL, global_batch=VAL)
    data = ValData(cfg, World(rank=0, size=1, local_size=1, device=torch.device("cpu")))
    (batch,) = data.batches()
    assert np.array_equal(batch.samples, np.arange(VAL))
    with torch.inference_mode():
        logits = random_model(cfg).eval()(normalize(batch.images, cfg.augment))
    label_logits = logits.gather(1, batch.labels[:, None])
    position = (logits > label_logits).sum(dim=1)  # (VAL,), 0: the highest
    assert ((logits == label_logits).sum(dim=1) == 1).all()  # no ties
    assert score_of_one_rank.top1 == (position < 1).sum().item() / VAL
    assert score_of_one_rank.top5 == (position < 5).sum().item() / VAL
    assert score_of_one_rank.loss == pytest.approx(F.cross_entropy(logits.double(), batch.labels).item(), rel=1e-6)
    counts = position.bincount(minlength=10).tolist()
    assert 0 < counts[0] != counts[1] and counts[4] > 0 and counts[5] > 0  # an off-by-one error would change the score


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_the_score_does_not_depend_on_the_number_of_ranks(ranks: int, score_of_one_rank: Score, betons: Path) -> None:
    """To the last bit, including the loss; all ranks return it."""
    assert run_ranks(ranks, score_on_rank, config(betons)) == [score_of_one_rank] * ranks


def score_with_signal(cfg: Config) -> tuple[Score | None, int]:
    """Rank 1 receives SIGTERM in its second round; returns the score and the number of rounds this rank started."""
    rounds = 0
    autocast = functools.partial(torch.autocast, "cpu", enabled=False)
    with join_process_group(cfg) as world:
        agreement = Agreement(world)
        agreement.install_signal_handlers()

        def stop() -> bool:
            nonlocal rounds
            rounds += 1
            if rounds == 2 and world.rank == 1 % world.size:
                os.kill(os.getpid(), signal.SIGTERM)
            return agreement.exchange().stop

        score = evaluate(random_model(cfg), ValData(cfg, world), cfg, world, autocast, stop)
        agreement.close()
    return score, rounds


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_signal_to_one_rank_stops_the_evaluation_on_all_ranks(ranks: int, betons: Path) -> None:
    """In the same round, and without a score, which would be that of a part of the data set."""
    results = run_ranks(ranks, score_with_signal, config(betons))
    assert results == [(None, 2 if ranks == 1 else 3)] * ranks  # a decision takes effect one round later


def test_the_command_prints_the_scores_of_the_weights_and_of_their_ema(
    betons: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same as an evaluation during training, as a table or as JSON; errors are one line."""
    cfg = replace(small_config(betons), data=replace(small_config(betons).data, val=betons / "nowhere.beton"))
    state = make_finished_run(tmp_path / "run", cfg)
    data = ValData(small_config(betons), World(rank=0, size=1, local_size=1, device=torch.device("cpu")))
    command = [str(tmp_path / "run"), "--data", str(betons / "val.beton"), "--device", "cpu"]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["step"] == 12 and found["images"] == {"scored": VAL, "data_set": VAL}
    for name, model in (("last", state.model), ("ema", state.ema)):
        assert model is not None
        (expected,) = run_ranks(1, score_of_model, small_config(betons), model)
        assert found[name] == asdict(expected)
    assert found["last"] != found["ema"] and len(data.beton) == VAL
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{tmp_path}/run/checkpoints/step-00000012, {betons}/val.beton: {VAL} images"
    assert lines[1].split() == ["weights", "top-1", "top-5", "loss"]
    assert lines[2].split()[:2] == ["last", f"{found['last']['top1']:.3%}"]
    assert lines[3].split()[2] == f"{found['ema']['top5']:.3%}"

    for args, message in (
        ([str(tmp_path / "run")], "nowhere.beton does not exist"),
        ([str(tmp_path / "none")], "none is not a run folder: it does not exist"),
        ([*command[:2], str(tmp_path / "val.beton")], "val.beton does not exist"),
    ):
        assert main([*args, "--device", "cpu"]) == 2
        err = capsys.readouterr().err
        assert message in err and err.startswith("vit.evaluate: ") and err.count("\n") == 1


def test_a_limit_of_the_run_applies_to_its_own_validation_set_alone(
    betons: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the output says so; a file named by `--data` is scored whole."""
    cfg = small_config(betons)
    make_finished_run(tmp_path / "run", replace(cfg, data=replace(cfg.data, limit=30)))
    command = [str(tmp_path / "run"), "--device", "cpu"]
    assert main(command) == main([*command, "--json"]) == 0
    first, *_, as_json = capsys.readouterr().out.splitlines()
    assert first.endswith(
        "val.beton: 30 images, the first of 100 (data.limit of the run; --data FILE scores all of a file)"
    )
    assert json.loads(as_json)["images"] == {"scored": 30, "data_set": VAL}
    assert main([*command, "--data", str(betons / "val.beton")]) == 0
    assert capsys.readouterr().out.splitlines()[0].endswith("val.beton: 100 images")


def test_damaged_images_that_are_not_scored_are_counted(
    jpegs_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """If the run skips them; they are missing in the saved evaluation too."""
    cfg = small_config(jpegs_copy)
    cfg = replace(cfg, data=replace(cfg.data, on_bad="skip", verify="never"))
    save_state(tmp_path / "run", TrainState.fresh(cfg, torch.device("cpu")), cfg)
    overwrite(jpegs_copy, int(open_beton(jpegs_copy).offset[3]), bytes(64))
    assert main([str(tmp_path / "run"), "--device", "cpu", "--save"]) == 0
    assert capsys.readouterr().out.splitlines()[0].endswith(f"{JPEGS - 1} images (skipped: 1 damaged image)")
    (folder,) = find_evaluations(tmp_path / "run")
    saved = read_evaluation(folder)
    assert (saved.images, saved.skipped) == (JPEGS - 1, 1) and all(each.sample != 3 for each in saved.mistakes)


def test_weights_selects_those_to_score_as_in_predict_and_export(
    betons: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same option with the same meaning: `ema` is an error if the run has no EMA."""
    make_finished_run(tmp_path / "run", small_config(betons))
    make_finished_run(tmp_path / "without", small_config(betons), with_ema=False)
    for weights in ("last", "ema"):
        assert main([str(tmp_path / "run"), "--weights", weights, "--device", "cpu"]) == 0
        assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:]] == [weights]
    assert main([str(tmp_path / "without"), "--weights", "ema", "--device", "cpu"]) == 2
    assert "has no EMA of the weights (optim.ema_decay is 0); use --weights last" in capsys.readouterr().err


def test_a_full_gpu_is_reported_in_one_line(
    betons: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It may be smaller than those of the training."""
    make_finished_run(tmp_path / "run", small_config(betons))
    monkeypatch.setattr("vit.evaluate.evaluate", mock.Mock(side_effect=torch.OutOfMemoryError("Tried to allocate")))
    assert main([str(tmp_path / "run"), "--device", "cpu"]) == 2
    assert capsys.readouterr().err == (
        "vit.evaluate: the memory of the GPU is not enough for the model and 8 images (micro_batch); "
        "use another GPU, or --device cpu\n"
    )


def score_of_model(cfg: Config, model: nn.Module) -> Score | None:
    with join_process_group(cfg) as world:
        return evaluate(model, ValData(cfg, world), cfg, world, autocast(cfg, world.device), stop=lambda: False)
