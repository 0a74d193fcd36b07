"""Training steps fed by decoding and augmentation, over the same steps fed by batches that are ready.

    python benchmarks/pipeline.py [--quick] [--rounds N] [--steps N]

The steps are those of `vit.train`: forward and backward, the fixed-order sum, clipping, AdamW.  They are fed, in turn,
by the whole pipeline (JPEGs in a .beton, random crops, RandAugment, mixup or CutMix, random erasing), by decoded images
that are augmented, and by two batches that stay on the device ("synthetic").  `vs_synthetic` is images/s of the first
over images/s of the last, the median of neighboring turns.  Decoding and augmentation also run alone:
`vs_parts_processor` is the processor time of the pipeline over the sum of that of synthetic steps, decoding and
augmentation.  On a CPU, where all of them share the cores, it tells what the pipeline adds by itself.

On a GPU: ViT-B/16 and ViT-S/16 in bf16, compiled; `cores_for_decoding` is how many cores keep this GPU busy.  On a CPU:
ViT-Ti/16 in float32, not compiled.  The JPEGs are those of loader.py, 400 x 350 pixels and 108 kB, in the page cache.
Needs neither FFCV nor a network.  The last line is one JSON object.
"""

if __name__ == "__main__":
    import missing_packages  # noqa: F401

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from loader import make_images

from benchmarks.measured.machine import gpu_name, machine, save_figures
from vit.run.command import run_command

COMMON = ("--data.verify", "never", "--epochs", "1000000", "--model.num_classes", "2", "--data.repeats", "1")
ERASING = ("--augment.erasing", "0.25")
CPU = {"ViT-Ti/16": ("vit_ti16_deit", "16", "--precision", "float32", "--compile", "false", "--data.prefetch", "1")}
GPU = {"ViT-B/16": ("vit_b16", "384", *ERASING), "ViT-S/16": ("vit_s16_deit", "256")}


def run(folder: Path, recipe: str, batch: str, *settings: str, rounds: int, steps: int) -> dict[str, Any]:
    """The figures of one recipe, measured in a process of its own."""
    beton = str(folder / "images.beton")
    command = [
        sys.executable,
        "-m",
        "benchmarks.measured.pipeline_steps",
        "--config",
        str(ROOT / f"configs/{recipe}.yaml"),
    ]
    command += ["--global_batch", batch, "--micro_batch", batch, "--data.train", beton, "--data.val", beton]
    command += [*COMMON, *settings, "--rounds", str(rounds), "--steps", str(steps)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{recipe} failed:\n{done.stderr[-3000:]}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def table(models: dict[str, dict[str, Any]]) -> str:
    """Lines for people, one block per model."""
    lines = []
    for name, each in models.items():
        title = f"{name}, {each['images_per_step']} images a step"
        lines.append(f"{title:<34}{'images/s':>12}{'core-ms/image':>16}")
        for source, rate in each["images_per_s"].items():
            lines.append(f"  {source:<32}{rate:>12,.1f}{each['processor_ms_per_image'][source]:>16.3f}")
        lines.append(f"  {'pipeline / synthetic, images/s':<32}{each['vs_synthetic']:>12.3f}")
        lines.append(f"  {'pipeline / its parts, core-ms':<32}{each['vs_parts_processor']:>12.3f}")
        lines.append(f"  {'cores for decoding':<32}{each['cores_for_decoding']:>12.2f}")
    return "\n".join(lines)


def main() -> None:
    """Prints a table, and one JSON object on the last line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="less than 50 s: fewer images, rounds and steps")
    parser.add_argument("--rounds", type=int, metavar="N", help="turns of each source (default: 5; with --quick: 2)")
    parser.add_argument("--steps", type=int, metavar="N", help="steps of a turn (default: 4; on a GPU: 20; --quick: 2)")
    options = parser.parse_args()
    gpu = gpu_name() is not None
    os.environ["PYTHONPATH"] = str(ROOT)
    rounds = options.rounds or (2 if options.quick else 5)
    steps = options.steps or (2 if options.quick else 20 if gpu else 4)
    with tempfile.TemporaryDirectory() as folder:
        make_images(Path(folder), 64 if options.quick else 1024 if gpu else 256, [])
        models = {}
        for name, (recipe, batch, *settings) in (GPU if gpu else CPU).items():
            images = "4" if options.quick and not gpu else batch
            models[name] = run(Path(folder), recipe, images, *settings, rounds=rounds, steps=steps)
    print(table(models))
    figures = {"vs_synthetic": min(each["vs_synthetic"] for each in models.values()), "models": models}
    figures |= {"machine": machine()}
    if not options.quick:
        save_figures("pipeline", figures)
    print(json.dumps(figures))


if __name__ == "__main__":
    run_command(main)
