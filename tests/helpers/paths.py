"""Paths of the project."""

import os
from pathlib import Path

from tests.helpers.environment import CHECKOUT_VARIABLE

ROOT = Path(__file__).resolve().parents[2]
# A folder with the project's files, but without the user's runs/ and data/: commands of tests run in it.
CHECKOUT = Path(os.environ.get(CHECKOUT_VARIABLE, ROOT))
CONFIGS = ROOT / "configs"
OTHER_CONFIGS = {CONFIGS / "imagenet.yaml", CONFIGS / "speeds.yaml"}  # data sets; what --estimate uses
RUN_CONFIGS = sorted({*CONFIGS.glob("*.yaml")} - OTHER_CONFIGS)
