"""What only a GPU can show to be right: pixels, copies, bits, and a job that is killed.

python -m benchmarks.on_gpu.truth [NAME]
"""

import json
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.on_gpu.checks import ROOT, Checks, main, work_folder
from benchmarks.on_gpu.jobs import killed_job, verify
from vit.augment import lanczos, pixel_ops, randaugment, three_augment
from vit.augment.gpu_kernels import gpu_warp
from vit.augment.pipeline import augment
from vit.checkpoint.snapshot import Snapshot, make_layout
from vit.checkpoint.train_state import TrainState
from vit.config.parser import load_config
from vit.config.run_schedule import RunSchedule
from vit.config.values import listed
from vit.distributed.world import enable_determinism, join_process_group
from vit.training.step import AugmentedBatch, StepRunner

checks = Checks()
GPU = torch.device("cuda", 0)
RECIPES = ("vit_b16", "vit_b16_deit", "vit_b16_deit3_192", "vit_b16_torchvision")
SMALL = ["--model.width", "192", "--model.heads", "3", "--model.depth", "4", "--model.mlp_dim", "768"]


def photos(count: int, side: int = 224) -> Tensor:
    """Smooth random images: (count, 3, side, side) uint8."""
    random = np.random.default_rng(0)
    small = torch.from_numpy(random.integers(0, 256, (count, 3, 16, 16), dtype=np.uint8)).float()
    return F.interpolate(small, (side, side), mode="bicubic").clamp(0, 255).to(torch.uint8)


@checks.add_quick
def the_fork_server_does_not_touch_the_gpu_and_its_forks_can() -> str:
    log = work_folder() / "fork.log"
    command = [sys.executable, "-m", "benchmarks.on_gpu.fork_probe", str(log)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-600:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["threads"] == 1 and not report["GPU files"] and report["exit code of the fork"] == 0, report
    return f"{report['the fork']}"


def _amounts(name: str, count: int) -> np.ndarray:
    fixed = {"Posterize": 4, "Solarize": 128, "SolarizeAdd": 30, "TranslateX": 30, "TranslateY": 30}
    largest = 30 if name == "Rotate" else 0.3 if "Shear" in name else 1
    spread = np.linspace(-0.9, 0.9, count) * largest
    return np.full(count, fixed[name], np.float64) if name in fixed else spread


@checks.add_quick
def each_operation_gives_the_cpus_bytes() -> tuple[str, dict[str, Any]]:
    images, found = photos(56), {}
    assert pixel_ops.native_library(images) is not None, "the C++ extension was not built"
    count = len(images)

    def compare(name: str, on_cpu: Tensor, on_gpu: Tensor) -> None:
        difference = (on_cpu.int() - on_gpu.cpu().int()).abs()
        if bool(difference.any()):
            found[name] = {"values": int((difference > 0).sum()), "largest": int(difference.max())}

    for index, name in enumerate(randaugment.OPERATIONS):
        op, amounts = np.full(count, index), _amounts(name, count)
        apply = lambda x: randaugment.apply(x, op, amounts, (124, 116, 104))  # noqa: B023, E731
        compare(name, apply(images.clone()), apply(images.to(GPU)))
    for name, shift in (("TranslateX", 30.5), ("TranslateY", -7.25)):
        op, amounts = np.full(count, list(randaugment.OPERATIONS).index(name)), np.full(count, shift)
        apply = lambda x: randaugment.apply(x, op, amounts, (1, 2, 3))  # noqa: B023, E731
        compare(f"{name} by parts of a pixel", apply(images.clone()), apply(images.to(GPU)))
    three = three_augment.draw_three_augment(count, np.random.default_rng(1))
    jitter = three_augment.draw_color_jitter(count, 0.3, np.random.default_rng(1))
    for name, function in (
        ("3-Augment", lambda x: three_augment.three_augment(x, *three)),
        ("color jitter", lambda x: three_augment.color_jitter(x, *jitter)),
    ):
        compare(name, function(images.clone()), function(images.to(GPU)))
    matrices = np.random.default_rng(2).normal([1, 0, 0, 1, 0, 0], [0.2, 0.3, 40, 0.2, 0.3, 40], (count, 6))
    in_torch = pixel_ops._warp(images.to(GPU), torch.from_numpy(matrices).to(GPU)[..., None, None], (9, 99, 199))
    on_cpu, on_gpu = images.clone(), images.to(GPU)
    for warped in (on_cpu, on_gpu):
        pixel_ops.Selection(warped, np.arange(count)).warp(matrices, (9, 99, 199))
    compare("warp as one kernel", on_cpu, on_gpu)
    compare("warp in torch on the GPU", on_cpu, in_torch)
    assert gpu_warp() is not None, "the kernel was not compiled"
    assert all(each["largest"] <= 1 and each["values"] <= 200 for each in found.values()), found
    return f"of {images.numel():,} values each, these differ: {found or 'none'}", found


@checks.add_quick
def images_resized_by_lanczoss_filter_are_those_of_the_cpu_without_a_wait() -> str:
    noise = np.random.default_rng(3).integers(0, 256, (100, 3, 224, 224), np.uint8)
    sides, images = (96, 128, 160, 192, 223), torch.cat([photos(100), torch.from_numpy(noise)])
    on_gpu = images.to(GPU)
    torch.cuda.set_sync_debug_mode("error")
    try:
        resized = [lanczos.resize(on_gpu, side) for side in sides]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    differing = {
        side: int((lanczos.resize(images, side) != ours.cpu()).sum()) for side, ours in zip(sides, resized, strict=True)
    }
    assert not any(differing.values()), f"values that differ, for each side: {differing}"
    return f"{len(images)} images to the sides {listed(map(str, sides), 'and')}"


@checks.add_quick
def a_recipe_augments_as_on_the_cpu_and_twice_the_same() -> str:
    out = {}
    for name in RECIPES:
        cfg = load_config(ROOT / f"configs/{name}.yaml")
        images = photos(32, cfg.model.image_size).permute(0, 2, 3, 1).contiguous()
        labels = torch.arange(32)
        plain = replace(cfg.augment, erasing=0.0)  # its noise is the device's own
        cpu, targets = augment(images.clone(), labels, plain, 1000, 5)
        gpu, gpu_targets = augment(images.to(GPU), labels.to(GPU), plain, 1000, 5)
        twice = [augment(images.to(GPU), labels.to(GPU), cfg.augment, 1000, 5)[0] for _ in range(2)]
        assert torch.equal(*twice), f"{name} differs from run to run"
        largest = float((cpu - gpu.cpu()).abs().max())
        assert largest < 0.02 and float((targets - gpu_targets.cpu()).abs().max()) < 1e-6, (name, largest)
        out[name] = round(largest, 7)
    return f"largest difference of normalized pixels: {out}"


@checks.add_quick
def a_snapshot_holds_the_bytes_from_before_the_update() -> tuple[str, dict[str, float]]:
    tensors = {f"model.{i}": torch.randn(1000 + 977 * i, device=GPU) for i in range(200)}
    snapshot = Snapshot(make_layout(tensors, 1), 0, GPU)
    for _ in range(5):
        expected = {name: tensor.cpu() for name, tensor in tensors.items()}
        snapshot.start_copy(tensors)
        busy = torch.randn(4096, 4096, device=GPU)
        busy = busy @ busy
        snapshot.wait_for_copy()
        for tensor in tensors.values():
            tensor.add_(1)
        assert snapshot.is_copied(wait=True)
        wrong = [name for name in tensors if not torch.equal(snapshot._views[name], expected[name])]
        assert not wrong, f"{len(wrong)} of {len(tensors)} tensors are wrong, the first is {wrong[0]}"
    snapshot.close()
    large = {"model.large": torch.randn(346_000_000 // 4, device=GPU)}
    started = time.perf_counter()
    snapshot = Snapshot(make_layout(large, 1), 0, GPU)
    torch.cuda.synchronize()
    registered = time.perf_counter()
    snapshot.start_copy(large)
    returned = time.perf_counter()
    snapshot.is_copied(wait=True)
    copied = time.perf_counter()
    snapshot.close()
    figures = {
        "register_seconds": round(registered - started, 3),
        "host_ms": round(1e3 * (returned - registered), 2),
        "gigabytes_per_second": round(0.346 / (copied - registered), 1),
    }
    return f"346 MB: {figures}", figures


def _train_twice(compiled: bool, cuda_graphs: bool = False) -> str:
    """Trains the same steps twice, with several micro-batches, drop path and EMA, and compares all tensors.

    With `cuda_graphs`, only the second time, in which all steps but the first replay graphs.
    """
    options = ["--micro_batch", "32", "--global_batch", "128", "--optim.ema_decay", "0.99"]
    cfg = load_config(ROOT / "configs/vit_b16_deit.yaml", *SMALL, *options, "--compile", str(compiled).lower())
    runs = []
    with join_process_group(cfg) as world:
        for graphs in (False, cuda_graphs):
            state = TrainState.fresh(cfg, world.device)
            runner = StepRunner(RunSchedule(replace(cfg, cuda_graphs=graphs), 10_000), world, state)
            for step in range(3):
                random = torch.Generator().manual_seed(step)
                images = torch.randn(128, 3, 224, 224, generator=random).to(GPU).split(32)
                targets = torch.softmax(torch.randn(128, 1000, generator=random), 1).to(GPU).split(32)
                batches = list(zip(images, targets, strict=True))
                runner.forward_backward(step, AugmentedBatch(batches, np.zeros(128, np.int64), None))
                runner.update(step)
            loss = runner.check_finite(weights=True)
            runs.append(({name: tensor.cpu() for name, tensor in state.tensors().items()}, loss))
            del state, runner
    differ = [name for name in runs[0][0] if not torch.equal(runs[0][0][name], runs[1][0][name])]
    assert not differ, f"{len(differ)} tensors differ, the first is {differ[0]}"
    return f"loss {runs[0][1][0]:.4f}"


@checks.add_quick
def the_host_does_not_wait_for_the_gpu_in_a_step() -> str:
    """torch raises an error at each operation that would wait, once all is allocated and compiled."""
    options = ["--micro_batch", "32", "--global_batch", "64", "--optim.ema_decay", "0.99", "--compile", "false"]
    cfg = load_config(ROOT / "configs/vit_b16.yaml", *SMALL, *options)
    with join_process_group(cfg) as world:
        runner = StepRunner(RunSchedule(cfg, 10_000), world, TrainState.fresh(cfg, world.device))
        images, targets = torch.randn(64, 3, 224, 224, device=GPU), torch.softmax(torch.randn(64, 1000, device=GPU), 1)
        batches = list(zip(images.split(32), targets.split(32), strict=True))
        for step in range(8):
            torch.cuda.set_sync_debug_mode("error" if step >= 3 else "default")
            try:
                runner.forward_backward(step, AugmentedBatch(batches, np.zeros(64, np.int64), None))
                runner.update(step)
            except RuntimeError as error:
                raise AssertionError(f"step {step}: {error}") from error
            finally:
                torch.cuda.set_sync_debug_mode("default")
        assert runner.check_finite() is not None
    return "5 steps"


@checks.add_quick
def the_same_steps_give_the_same_bits_twice() -> str:
    return _train_twice(compiled=False)


@checks.add
def the_same_compiled_steps_give_the_same_bits_twice() -> str:
    return _train_twice(compiled=True)


@checks.add
def cuda_graphs_give_the_bits_of_the_same_steps_without() -> str:
    return _train_twice(compiled=False, cuda_graphs=True)


@checks.add
def cuda_graphs_of_compiled_steps_give_the_bits_of_the_same_steps_without() -> str:
    return _train_twice(compiled=True, cuda_graphs=True)


checks.add(killed_job)
checks.add(verify)

if __name__ == "__main__":
    enable_determinism()
    torch.cuda.set_device(GPU)
    main(checks)
