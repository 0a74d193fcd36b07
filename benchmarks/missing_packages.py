"""Imported first by the scripts of this folder: one line instead of a traceback if a package is not installed."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

from vit.run.dependencies import explain_missing_packages

explain_missing_packages()
