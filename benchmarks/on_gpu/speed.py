"""How fast each recipe trains on this card, and what each choice costs.

python -m benchmarks.on_gpu.speed [NAME]
"""

import json
import os
from typing import Any

from benchmarks.on_gpu.checks import NO_PROFILES_VARIABLE, Checks, main, work_folder
from benchmarks.on_gpu.jobs import run
from benchmarks.on_gpu.levers import other_attention

checks = Checks()


def step(*arguments: str) -> tuple[str, dict[str, Any]]:
    """Figures of a recipe's step, measured in a process of its own."""
    output = run("-m", "benchmarks.on_gpu.step_time", *arguments, seconds=150)
    figures = json.loads(output.splitlines()[-1])
    return ", ".join(f"{key} {value}" for key, value in figures.items() if key not in ("name", "loss")), figures


def profile(name: str) -> list[str]:
    """The options of a step that is profiled too, unless profiles are not wanted."""
    if name not in PROFILED or os.environ.get(NO_PROFILES_VARIABLE):
        return []
    folder = work_folder() / "profiles"
    folder.mkdir(exist_ok=True)
    return ["--profile", str(folder / f"{name}.txt")]


@checks.add
def ceilings() -> tuple[str, dict[str, Any]]:
    figures = json.loads(run("-m", "benchmarks.on_gpu.ceilings", seconds=90).splitlines()[-1])
    return json.dumps(figures), figures


RECIPES = (
    *("vit_b16", "vit_b16_noaug", "vit_b16_deit", "vit_b16_torchvision", "vit_b16_deit3_192", "vit_s16_90ep"),
    "vit_ti16_deit",
)
STEPS = {name: [name] for name in RECIPES} | {
    "vit_b16 with DDPOptimizer": ["vit_b16", "--lever", "ddp_optimizer"],
    "vit_b16 with the warp in torch": ["vit_b16", "--lever", "warp_in_torch"],
    "vit_b16 as one graph": ["vit_b16", "--lever", "one_graph"],
    "vit_b16_deit as one graph": ["vit_b16_deit", "--lever", "one_graph"],
    **{f"vit_b16 in groups of {size} blocks": ["vit_b16", "--lever", f"groups_of_{size}"] for size in (1, 4, 12)},
    **{f"vit_b16_deit in groups of {size}": ["vit_b16_deit", "--lever", f"groups_of_{size}"] for size in (1, 4)},
    "vit_b16_deit with combined kernels": ["vit_b16_deit", "--lever", "combo_kernels"],
    **{f"vit_b16 with {name}": ["vit_b16", "--lever", name.lower()] for name in other_attention()},
    "vit_b16 with CUDA graphs": ["vit_b16", "--cuda_graphs", "true"],
    "vit_b16_deit with CUDA graphs": ["vit_b16_deit", "--cuda_graphs", "true"],
    "vit_s16_90ep with CUDA graphs": ["vit_s16_90ep", "--cuda_graphs", "true"],
    "vit_ti16_deit with CUDA graphs": ["vit_ti16_deit", "--cuda_graphs", "true"],
    "vit_b16 not compiled": ["vit_b16", "--compile", "false"],
    "vit_b16 with exact samples": ["vit_b16", "--exact", "samples"],
}
PROFILED = ("vit_b16", "vit_b16_deit", "vit_s16_90ep")


def _add(name: str, arguments: list[str]) -> None:
    def check() -> tuple[str, dict[str, Any]]:
        return step(*arguments, *profile(name))

    check.__name__ = f"step_of_{name.replace(' ', '_')}"
    add = checks.add_quick if name == "vit_b16 not compiled" else checks.add
    add(check)


for _name, _arguments in STEPS.items():
    _add(_name, _arguments)

if __name__ == "__main__":
    main(checks)
