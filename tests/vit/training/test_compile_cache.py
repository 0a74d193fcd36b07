"""What was compiled is kept in the run folder: the run goes on on another node without compiling its graphs again."""

import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.helpers.data_sets import small_config
from tests.helpers.ranks import run_ranks
from vit.checkpoint.format import find_checkpoints
from vit.checkpoint.load import load_checkpoint
from vit.config.schema import Config
from vit.distributed.world import ALONE, join
from vit.run.clock import Clock
from vit.run.folder import RunFolder
from vit.train import Trainer
from vit.training.compile_cache import Compiled
from vit.training.step import Augmented

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


def kept(run: Path) -> list[Path]:
    """The files of what was compiled."""
    return [path for path in sorted(RunFolder(run).compiled.rglob("*")) if path.suffix]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(find_checkpoints(RunFolder(run).checkpoints)[0])[0]


@needs_compiler
def test_a_killed_run_takes_its_graphs_over_on_another_node(betons: Path, tmp_path: Path) -> None:
    """Of training and of evaluation, from its folder alone, to the bits of the run left alone; and adds no file."""
    cfg = small_config(betons)
    cfg = replace(cfg, epochs=1, compile=True, log=replace(cfg.log, eval_every_epochs=0.5))
    for name in ("alone", "killed"):
        (tmp_path / name).mkdir()
    n1, n2 = tmp_path / "n1", tmp_path / "n2"
    assert run_ranks(1, attempt, cfg, tmp_path / "killed", n1, KilledTrainer, timeout=300) == [-9]
    files = kept(tmp_path / "killed")
    assert len(files) == 2
    ((found, made),) = run_ranks(1, attempt, cfg, tmp_path / "killed", n2, timeout=300)
    assert (found >= 2, made) == (True, 0)
    assert kept(tmp_path / "killed") == files
    assert run_ranks(1, attempt, cfg, tmp_path / "alone", n1, timeout=300) == [(found, 0)]
    alone, killed = weights(tmp_path / "alone"), weights(tmp_path / "killed")
    assert alone.keys() == killed.keys()
    assert [name for name in alone if not torch.equal(alone[name], killed[name])] == []


class Torch:
    """Stands for torch's own: what it made, which a test says, and what it was given to load."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made, self.keys, self.loaded = b"", ["a"], list[bytes]()
        monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: (self.made, self._info()))
        monkeypatch.setattr(torch.compiler, "load_cache_artifacts", self._load)

    def _info(self) -> SimpleNamespace:
        return SimpleNamespace(artifacts={"inductor": list(self.keys)})

    def _load(self, made: bytes) -> SimpleNamespace:
        self.loaded.append(made)
        return self._info()


def test_what_is_damaged_is_told_and_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One byte of it: a kernel that computes something else would do so without a word."""
    fake, run = Torch(monkeypatch), RunFolder(tmp_path)
    fake.made = bytes(100)
    Compiled(run, ALONE).keep()
    (file,) = kept(tmp_path)
    file.write_bytes(bytes(99) + b"1")
    compiled = Compiled(run, ALONE)
    assert capsys.readouterr().out == f"{file} is damaged: what was in it is compiled again\n"
    assert fake.loaded == []
    fake.made = bytes(101)  # no two are the same: they hold how long it took
    compiled.keep()
    Compiled(run, ALONE)
    assert fake.loaded == [bytes(101)]
    assert capsys.readouterr().out == ""


def test_what_cannot_be_read_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It only costs time."""
    fake, run = Torch(monkeypatch), RunFolder(tmp_path)
    Compiled(run, ALONE).keep()
    (file,) = kept(tmp_path)
    file.unlink()
    file.mkdir()
    Compiled(run, ALONE)
    assert "cannot be read (Is a directory)" in capsys.readouterr().out
    assert fake.loaded == []


def test_a_full_disk_is_told_once_and_all_is_written_when_it_has_room(
    tiny_disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training goes on meanwhile, no half of a file takes the last of the room, and what was made first is not lost."""
    fake = Torch(monkeypatch)
    (tiny_disk / "ballast").write_bytes(bytes(900_000))
    compiled = Compiled(RunFolder(tiny_disk), ALONE)
    fake.made = bytes(range(256)) * 1000
    compiled.keep()
    compiled.keep()
    said = capsys.readouterr().out
    assert said.count("cannot be written (No space left on device): other nodes compile again\n") == 1
    assert kept(tiny_disk) == []
    first, fake.made, fake.keys = fake.made, fake.made + b"more", ["a", "b"]
    (tiny_disk / "ballast").unlink()
    compiled.keep()
    assert {file.read_bytes() for file in kept(tiny_disk)} == {first, fake.made}
    fake.made = b"in another order"
    compiled.keep()
    assert len(kept(tiny_disk)) == 2
