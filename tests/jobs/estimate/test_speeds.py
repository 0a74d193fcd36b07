"""The table of measured speeds, and how a speed is scaled to another config."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from jobs.estimate.queue_times import parse
from jobs.estimate.sizes import sizes_on_slurm
from jobs.estimate.speeds import TABLE, describe, kind, nearest, read_table
from jobs.estimate.words import about
from jobs.estimate.work import Work
from jobs.login.sizes import dividing_ranks
from jobs.slurm.tables import PartitionNodes
from tests.helpers.paths import CONFIGS, ROOT
from vit.config.parser import load_config
from vit.config.user_error import UserError

B16 = load_config(CONFIGS / "vit_b16.yaml")


def test_every_figure_of_the_table_is_in_the_file_that_it_names() -> None:
    """Nothing is invented: rows are compared with benchmarks/results, and assumed ones with configs/README.md."""
    for row in yaml.safe_load(TABLE.read_text())["speeds"]:
        text = (ROOT / row["source"]).read_text()
        if row.get("assumed"):
            assert row["source"] == "configs/README.md" and f"{row['images_per_second']:,}" in text, row
        elif row["source"].endswith("gpu.json"):
            parts = json.loads(text)["parts"]["speed"]
            (part,) = [part for part in parts if part["name"] == f"step of {row['name']}"]
            assert part["figures"]["images_per_second"] == row["images_per_second"], row
        else:
            (run,) = [run for run in json.loads(text)["runs"] if run["model"] == row["name"]]
            assert run["rows"]["ours"]["images_per_s"] == row["images_per_second"]


def test_the_other_figures_of_the_table_are_in_the_files_that_they_name() -> None:
    """Starts, compiling, checkpoints."""
    table = yaml.safe_load(TABLE.read_text())
    gpu, cpu = table["overheads"]
    for row in (gpu, cpu):
        text = (ROOT / row["source"]).read_text()
        for name in ("start", "compile", "compile_again"):
            assert row[name] == 0 or str(row[name]) in text, (row, name)
    saved, row = json.loads((ROOT / table["checkpoint"]["source"]).read_text()), table["checkpoint"]
    assert row["bytes"] == saved["bytes"]
    assert 1000 * row["stall"] == pytest.approx(saved["median_ms"]["ours"])
    assert 1000 * row["write"] == pytest.approx(saved["median_ms"]["write"])


@pytest.mark.parametrize("name", ["vit_b16", "vit_b16_deit", "vit_ti16_deit", "vit_b16_torchvision"])
def test_a_recipe_that_was_measured_is_found_in_the_table(name: str) -> None:
    """With no difference at all."""
    found = nearest(load_config(CONFIGS / f"{name}.yaml"), "NVIDIA H200", 1, read_table().speeds)
    assert found is not None and (found.speed.name, found.differences) == (name, ())


def test_another_kind_of_gpu_is_scaled_by_its_peak_and_named() -> None:
    """A V100 has an eighth of an H200's peak."""
    rows = [speed for speed in read_table().speeds if speed.device == "NVIDIA H200"]
    found = nearest(B16, "Tesla V100-SXM2-32GB", 1, rows)
    assert found is not None and found.images_per_second == pytest.approx(3345 * 125 / 989)
    assert found.differences == ("H200, not V100, 0.1 times the peak FLOP/s",)
    unknown = nearest(B16, "Some Accelerator", 1, rows)
    assert unknown is not None and unknown.differences == ("H200, not Some Accelerator, whose speeds are not known",)
    assert nearest(B16, "cpu", 1, rows) is None, "no GPU is compared with a CPU"


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("a100", "A100"),
        ("nvidia_h100_80gb_hbm3", "H100"),
        ("l40s", "L40S"),
        ("tesla", "tesla"),
    ],
)
def test_kinds_of_gpus_are_known_by_the_names_of_drivers_and_of_slurm(device: str, name: str) -> None:
    """`gres` types are lower-case, with underscores."""
    assert kind(device) == name


def test_of_equal_runs_on_cpus_one_that_had_its_cores_to_itself_comes_first() -> None:
    """Although another one is newer; without such a run, the estimate says what the other one had."""
    cpu = next(speed for speed in read_table().speeds if speed.device == "cpu")
    idle = replace(cpu, name="idle", is_table=False, age=900.0)
    busy = replace(idle, name="busy", age=1.0, core_share=0.4, images_per_second=5.0)
    found, other = nearest(B16, "cpu", 1, [busy, idle]), nearest(B16, "cpu", 1, [busy])
    assert found is not None and found.speed.name == "idle" and "of a core" not in describe(found)
    assert other is not None and "each rank had 40% of a core there" in describe(other)


def test_only_ranks_that_divide_the_micro_batches_and_fit_are_listed() -> None:
    """As few nodes as possible."""
    many = replace(B16, global_batch=12 * 128, micro_batch=128)
    assert dividing_ranks([many]) == [1, 2, 3, 4, 6, 12]
    group = PartitionNodes("gpu", True, None, 2, 4, 64, 1)

    def fits(nodes: int, gpus: int) -> None:
        if nodes > 2:
            raise UserError("too many")

    assert sizes_on_slurm(many, [group], 8, fits) == [(1, 1), (1, 2), (1, 3), (1, 4), (2, 3)]
    assert sizes_on_slurm(many, [replace(group, cpus=16)], 8, fits) == [(1, 1), (1, 2), (2, 2)]


def test_evaluations_that_are_left_are_counted() -> None:
    """Each epoch, and the last step if it is not on the border of an epoch."""
    cfg = replace(B16, epochs=10, optim=replace(B16.optim, warmup_epochs=0))
    assert Work(cfg, 15_360, 100).evaluations == 10
    assert Work(cfg, 15_360, 100, step=50).evaluations == 5
    assert Work(cfg, 15_360, 100, step=100).evaluations == 0
    assert Work(replace(cfg, log=replace(cfg.log, eval_every_epochs=3)), 15_360, 100).evaluations == 4


def test_what_sbatch_prints_is_read() -> None:
    """Slurm 22.05 and later."""
    text = "sbatch: Job 12 to start at 2026-03-01T14:20:00 using 8 processors on nodes n[1-2] in partition gpu\n"
    found = parse(text)
    assert found.start is not None and found.nodes == "n[1-2]"
    assert parse("allocation failure: Requested node configuration is not available").start is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (4.2, "4.2 s"), (42, "42 s"), (107.4, "1:47"), (2500, "42 min"), (29_460, "8 h 11 min"),
        (391_000, "4 d 13 h"), (10_000_000, "115 d"),
    ],
)  # fmt: skip
def test_times_have_as_many_digits_as_they_are_worth(seconds: float, text: str) -> None:
    """Estimates are no stopwatches."""
    assert about(seconds) == text


def test_the_table_is_installed_with_the_recipes() -> None:
    """An installed copy has it too."""
    assert TABLE.parent == CONFIGS and Path(TABLE).is_file()
