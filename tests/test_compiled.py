"""What was compiled is kept in the run folder: the run goes on on another node without compiling its graphs again."""

import hashlib
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import small_config
from ranks import run_ranks

from vit import checkpoint
from vit.compiled import Compiled
from vit.config import Config
from vit.ledger import Clock, RunFolder
from vit.step import Augmented
from vit.train import Trainer
from vit.world import ALONE, join

LAST = 5  # step of the attempt that is killed: it has evaluated by then

needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs a C++ compiler"
)


class KilledTrainer(Trainer):
    """Ends itself by SIGKILL in the middle of a step, once its last checkpoint is there."""

    def train_step(self, step: int, batch: Augmented) -> None:
        if step == LAST:
            self.saver.finish()
            os.kill(os.getpid(), signal.SIGKILL)
        super().train_step(step, batch)


def attempt(cfg: Config, run: Path, node: Path, trainer: type[Trainer] = Trainer) -> tuple[int, int]:
    """One attempt on a node whose disk is that folder; how many graphs it found in a cache, and how many it made."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(node)
    from torch._dynamo.utils import counters  # after the folder was named

    with join(cfg) as world:
        training = trainer(cfg, RunFolder(run), world, Clock(time.time()), [])
        training.train()
        training.agreement.close()
        training.saver.close()
        found = counters["aot_autograd"]
        return found["autograd_cache_hit"], found["autograd_cache_miss"]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(checkpoint.find(RunFolder(run).checkpoints)[0])[0]


@needs_compiler
def test_a_killed_run_compiles_nothing_again_on_another_node(betons: Path, tmp_path: Path) -> None:
    """All graphs, of training and of evaluation, come from its folder; the bits are those of the run left alone."""
    cfg = small_config(betons)
    cfg = replace(cfg, epochs=1, compile=True, log=replace(cfg.log, eval_every_epochs=0.5))
    for name in ("alone", "killed"):
        (tmp_path / name).mkdir()
    ((_, made),) = run_ranks(1, attempt, cfg, tmp_path / "alone", tmp_path / "n1", timeout=300)
    assert made >= 2
    assert run_ranks(1, attempt, cfg, tmp_path / "killed", tmp_path / "n1", KilledTrainer, timeout=300) == [-9]
    ((found, made_again),) = run_ranks(1, attempt, cfg, tmp_path / "killed", tmp_path / "n2", timeout=300)
    assert (found, made_again) == (made, 0)
    alone, killed = weights(tmp_path / "alone"), weights(tmp_path / "killed")
    assert alone.keys() == killed.keys()
    assert [name for name in alone if not torch.equal(alone[name], killed[name])] == []


def test_what_is_damaged_is_told_not_used_and_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One byte of it: a kernel that computes something else would do so without a word."""
    file = tmp_path / "compiled" / "rank-0" / f"{hashlib.sha256(bytes(100)).hexdigest()}.bin"
    file.parent.mkdir(parents=True)
    file.write_bytes(bytes(99) + b"1")
    loaded: list[bytes] = []
    monkeypatch.setattr(torch.compiler, "load_cache_artifacts", loaded.append)
    compiled = Compiled(RunFolder(tmp_path), ALONE)
    assert capsys.readouterr().out == f"{file} is damaged: what was in it is compiled again\n"
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: (bytes(100), None))
    compiled.keep()
    assert loaded == []
    Compiled(RunFolder(tmp_path), ALONE)
    assert loaded == [bytes(100)]
    assert capsys.readouterr().out == ""


def test_a_full_disk_is_told_once_and_written_when_it_has_room(
    tiny_disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training goes on meanwhile, and no half of a file takes the last of the room."""
    made = bytes(range(256)) * 1000
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: (made, None))
    (tiny_disk / "ballast").write_bytes(bytes(900_000))
    compiled = Compiled(RunFolder(tiny_disk), ALONE)
    file = tiny_disk / "compiled" / "rank-0" / f"{hashlib.sha256(made).hexdigest()}.bin"
    for _ in range(2):
        compiled.keep()
    said = f"{file} cannot be written (No space left on device): another node compiles again\n"
    assert capsys.readouterr().out == said
    assert list(file.parent.iterdir()) == []
    (tiny_disk / "ballast").unlink()
    compiled.keep()
    assert file.read_bytes() == made
    written = file.stat().st_mtime_ns
    compiled.keep()
    assert file.stat().st_mtime_ns == written, "nothing new, and written again"
