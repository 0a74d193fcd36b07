"""The compile cache in the run folder: a run resumes on another node without compiling its graphs again."""

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
from vit.distributed.world import SINGLE_RANK, join_process_group
from vit.run.clock import Clock
from vit.run.folder import RunFolder
from vit.train import Trainer
from vit.training.compile_cache import CompileCache
from vit.training.step import AugmentedBatch

KILL_STEP = 5  # after the first evaluation

needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs a C++ compiler"
)


class KilledTrainer(Trainer):
    """Sends itself SIGKILL in the middle of a step, after its last checkpoint is committed."""

    def train_step(self, step: int, batch: AugmentedBatch) -> None:
        if step == KILL_STEP:
            self.saver.finish()
            os.kill(os.getpid(), signal.SIGKILL)
        super().train_step(step, batch)


def run_on_node(cfg: Config, run: Path, node: Path, trainer_class: type[Trainer] = Trainer) -> tuple[int, int]:
    """Runs an attempt with `node` as the node's local cache; returns the numbers of graphs found and compiled."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(node)
    from torch._dynamo.utils import counters  # reads the variable when imported

    with join_process_group(cfg) as world:
        trainer = trainer_class(cfg, RunFolder(run), world, Clock(time.time()), [])
        trainer.train()
        trainer.agreement.close()
        trainer.saver.close()
        graphs = counters["aot_autograd"]
        return graphs["autograd_cache_hit"], graphs["autograd_cache_miss"]


def cache_files(run: Path) -> list[Path]:
    return [path for path in sorted(RunFolder(run).compiled.rglob("*")) if path.suffix]


def final_tensors(run: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(find_checkpoints(RunFolder(run).checkpoints)[0])[0]


@needs_compiler
def test_the_graphs_of_all_image_sizes_are_kept_and_found_on_another_node(betons: Path, tmp_path: Path) -> None:
    """Those of the second size, too, although the run is killed before its first step at that size."""
    cfg = small_config(betons)
    cfg = replace(cfg, epochs=2, compile=True, train_sizes=((0.5, 14), (0.5, 28)))  # 16 steps
    node_1, node_2, run = tmp_path / "node-1", tmp_path / "node-2", tmp_path / "run"
    run.mkdir()
    assert run_ranks(1, run_on_node, cfg, run, node_1, KilledTrainer, timeout=300) == [-9]
    assert KILL_STEP < 8, "the second size begins at step 8"
    ((found, compiled),) = run_ranks(1, run_on_node, cfg, run, node_2, timeout=300)
    assert found >= 2
    assert compiled == 1, "only that of evaluation, which the first attempt did not reach"


@needs_compiler
def test_a_killed_run_reuses_its_graphs_on_another_node(betons: Path, tmp_path: Path) -> None:
    """Those of training and of evaluation; it writes no new file and ends with the bits of an uninterrupted run."""
    cfg = small_config(betons)
    cfg = replace(cfg, epochs=1, compile=True, log=replace(cfg.log, eval_every_epochs=0.5))
    for name in ("uninterrupted", "killed"):
        (tmp_path / name).mkdir()
    node_1, node_2 = tmp_path / "node-1", tmp_path / "node-2"
    assert run_ranks(1, run_on_node, cfg, tmp_path / "killed", node_1, KilledTrainer, timeout=300) == [-9]
    files = cache_files(tmp_path / "killed")
    assert len(files) == 2
    ((found, compiled),) = run_ranks(1, run_on_node, cfg, tmp_path / "killed", node_2, timeout=300)
    assert (found >= 2, compiled) == (True, 0)
    assert cache_files(tmp_path / "killed") == files
    assert run_ranks(1, run_on_node, cfg, tmp_path / "uninterrupted", node_1, timeout=300) == [(found, 0)]
    expected, tensors = final_tensors(tmp_path / "uninterrupted"), final_tensors(tmp_path / "killed")
    assert expected.keys() == tensors.keys()
    assert [name for name in expected if not torch.equal(expected[name], tensors[name])] == []


class FakeCompiler:
    """Replaces torch's serialization of artifacts: saves `artifacts` under `keys`, and records what is loaded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.artifacts, self.keys, self.loaded = b"", ["a"], list[bytes]()
        monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: (self.artifacts, self._info()))
        monkeypatch.setattr(torch.compiler, "load_cache_artifacts", self._load)

    def _info(self) -> SimpleNamespace:
        return SimpleNamespace(artifacts={"inductor": list(self.keys)})

    def _load(self, artifacts: bytes) -> SimpleNamespace:
        self.loaded.append(artifacts)
        return self._info()


def test_a_damaged_file_is_reported_and_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After one changed byte, which torch might load as a kernel that computes something else; it is written again."""
    compiler, run = FakeCompiler(monkeypatch), RunFolder(tmp_path)
    compiler.artifacts = bytes(100)
    CompileCache(run, SINGLE_RANK).save()
    (file,) = cache_files(tmp_path)
    file.write_bytes(bytes(99) + b"1")
    cache = CompileCache(run, SINGLE_RANK)
    assert capsys.readouterr().out == f"{file} is damaged; its graphs are compiled again\n"
    assert compiler.loaded == []
    compiler.artifacts = bytes(101)  # never the same bytes twice: artifacts contain the time that compiling took
    cache.save()
    CompileCache(run, SINGLE_RANK)
    assert compiler.loaded == [bytes(101)]
    assert capsys.readouterr().out == ""


def test_an_unreadable_file_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is reported, and its graphs are compiled again."""
    compiler, run = FakeCompiler(monkeypatch), RunFolder(tmp_path)
    CompileCache(run, SINGLE_RANK).save()
    (file,) = cache_files(tmp_path)
    file.unlink()
    file.mkdir()
    CompileCache(run, SINGLE_RANK)
    assert "cannot be read (Is a directory)" in capsys.readouterr().out
    assert compiler.loaded == []


def test_artifacts_are_written_once_a_full_disk_has_space_again(
    tiny_disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training continues, the error is printed once, no partial file remains, and earlier artifacts are not lost."""
    compiler = FakeCompiler(monkeypatch)
    (tiny_disk / "ballast").write_bytes(bytes(900_000))
    cache = CompileCache(RunFolder(tiny_disk), SINGLE_RANK)
    compiler.artifacts = bytes(range(256)) * 1000
    cache.save()
    cache.save()
    output = capsys.readouterr().out
    assert output.count("cannot be written (No space left on device); other nodes compile again\n") == 1
    assert cache_files(tiny_disk) == []
    first, compiler.artifacts, compiler.keys = compiler.artifacts, compiler.artifacts + b"more", ["a", "b"]
    (tiny_disk / "ballast").unlink()
    cache.save()
    assert {file.read_bytes() for file in cache_files(tiny_disk)} == {first, compiler.artifacts}
    compiler.artifacts = b"the same graphs in another order"
    cache.save()
    assert len(cache_files(tiny_disk)) == 2
