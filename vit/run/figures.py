"""Imports Matplotlib for figures that are written to files, whatever backend the environment names."""

import importlib
import os
from typing import Any


def import_matplotlib() -> Any:
    """Matplotlib, with the backend for files if it was not imported before.  That takes a second.

    While it is imported it checks the backend that the environment names, which in the shell of a notebook is one that
    only the notebook's own environment may have.  The variable is left as it was, for the caller's own processes.
    """
    backend = os.environ.get("MPLBACKEND")
    os.environ["MPLBACKEND"] = "agg"
    try:
        return importlib.import_module("matplotlib")
    finally:
        del os.environ["MPLBACKEND"]
        os.environ |= {"MPLBACKEND": backend} if backend is not None else {}
