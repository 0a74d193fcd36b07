"""The roofline worksheet: its work is the model's, and the README quotes what the script computes."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.autograd import DeviceType

from benchmarks import roofline
from benchmarks.on_gpu.step_time import kernel_ms
from tests.helpers.paths import ROOT
from vit.config.parser import load_config
from vit.config.sections import ModelConfig
from vit.history.utilization import training_flops_per_image
from vit.model.vision_transformer import VisionTransformer

RECIPES = ("vit_b16", "vit_b16_deit", "vit_s16_90ep", "vit_b16_deit3_192")
COUNTED = ("host_ms", "allocated_gib", "compiled_gb")
COMMAND = [sys.executable, str(ROOT / "benchmarks" / "roofline.py")]


def figures() -> dict[str, Any]:
    """What the script prints as its last line."""
    done = subprocess.run([*COMMAND, "--quick"], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def readme_rows() -> dict[str, list[str]]:
    """The cells of the worksheet's first table, by their first cell."""
    section = (ROOT / "benchmarks" / "README.md").read_text().partition("## Roofline of the step")[2]
    lines = [line.strip("|").split("|") for line in section.partition("\n\n- ")[0].splitlines() if line.startswith("|")]
    return {cells[0].strip(" *"): [cell.strip(" *") for cell in cells[1:]] for cells in lines}


def test_the_readme_quotes_what_the_script_computes() -> None:
    """Each cell, for each of its recipes."""
    rows, recipes = readme_rows(), figures()["recipes"]
    for column, each in enumerate(recipes.values()):
        for name, part in each["parts"].items():
            shown = [str(part[key] or "") for key in ("teraflop", "gigabytes", "ms")]
            assert rows[name][3 * column : 3 * column + 3] == shown, name
        assert rows["least time"][3 * column + 2] == str(each["least_ms"])
        assert rows["measured"][3 * column + 2] == str(each["measured_ms"] or "not yet")
    assert len(rows["least time"]) == 3 * len(recipes)


def test_the_readme_quotes_the_counts_of_changes() -> None:
    """Launches, the host's milliseconds, memory and compiled bytes of each."""
    results = json.loads((roofline.RESULTS / "gpu_levers.json").read_text())["levers"]
    section = (ROOT / "benchmarks" / "README.md").read_text().partition("| recipe | change | launches |")[2]
    rows = [line.strip("|").split("|") for line in section.partition("\n\n")[0].splitlines()[2:]]
    shown = [[cell.strip() for cell in (row[0], *row[2:6])] for row in rows]
    counted = [
        [name.split()[0], f"{figures['launches']:,}", *(str(figures[key] or "") for key in COUNTED)]
        for name, figures in results.items()
    ]
    assert sorted(shown) == sorted(counted)


def test_the_least_bytes_are_less_than_those_of_the_compiled_kernels() -> None:
    """Or the worksheet would count bytes that need not be moved."""
    counted = json.loads((roofline.RESULTS / "gpu_levers.json").read_text())["levers"]
    for recipe, each in figures()["recipes"].items():
        least = each["parts"]["pointwise operations of the blocks"]["gigabytes"]
        assert 0.5 < least / counted[f"{recipe} groups_of_1"]["compiled_gb"] < 1


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_operations_of_all_parts_are_those_of_the_utilization(recipe: str) -> None:
    """By which `status.py` shows the share of the card's FLOP/s."""
    cfg = load_config(ROOT / "configs" / f"{recipe}.yaml")
    card, _ = roofline.Card.read(roofline.RESULTS / "gpu.json")
    flops = sum(part.flops for part in roofline.parts(cfg, card))
    assert flops == pytest.approx(cfg.global_batch // roofline.GPUS * training_flops_per_image(cfg.model))


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("positions", ["learned", "sincos2d"])
@pytest.mark.parametrize("layer_scale", [0.0, 0.1])
def test_the_bytes_of_the_update_are_of_as_many_parameters_as_the_model_has(
    pool: Any, positions: Any, layer_scale: float
) -> None:
    """With and without a class token, learned positions and LayerScale."""
    small = {"image_size": 32, "width": 32, "depth": 2, "heads": 2, "mlp_dim": 48, "num_classes": 5}
    model = ModelConfig(**small, pool=pool, positions=positions, layer_scale=layer_scale)  # type: ignore[arg-type]
    assert roofline.parameters(model) == sum(p.numel() for p in VisionTransformer(model).parameters())


def test_a_profile_is_divided_into_the_parts_of_the_worksheet() -> None:
    """By the names of the kernels; what the host did is not counted."""
    names = {
        "triton_poi_fused_gelu_view_4": "compiled",
        "void pytorch_flash::flash_bwd_dot_do_o_kernel": "attention",
        "nvjet_hsh_128x256_64x4_2x1_v_bz_coopA_TNT": "matrix products",
        "Memset (Device)": "copies",
        "void at::native::vectorized_elementwise_kernel": "other",
    }
    device = [(name, DeviceType.CUDA) for name in names] + [("aten::add", DeviceType.CPU)]
    events = [SimpleNamespace(key=name, device_type=kind, self_device_time_total=3000.0) for name, kind in device]
    profiler: Any = SimpleNamespace(key_averages=lambda: events)
    assert kernel_ms(profiler, 2) == dict.fromkeys(sorted(names.values()), 1.5)


def test_a_file_without_figures_of_a_card_is_named(tmp_path: Path) -> None:
    """One line with what to do, and no traceback: missing, no JSON, other JSON; a recipe that does not exist."""
    (tmp_path / "text").write_text("no JSON")
    (tmp_path / "other").write_text("{}")
    for options, reason in (
        *(
            (["--card", str(tmp_path / name)], f"{tmp_path / name} has no figures")
            for name in ("none", "text", "other")
        ),
        (["vit_b17"], "no recipe vit_b17 in configs/"),
    ):
        done = subprocess.run([*COMMAND, *options], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert reason in done.stderr.splitlines()[-1], done.stderr
