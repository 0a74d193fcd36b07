"""Paths of the project."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
RUN_CONFIGS = sorted({*CONFIGS.glob("*.yaml")} - {CONFIGS / "imagenet.yaml"})  # imagenet.yaml describes data sets
