"""Keeps Python's garbage collector out of a command's imports.

Imports leave hardly any garbage, but torch's create half a million objects, which the collector would go through again
and again: a fifth to a quarter of the processor time of a start (benchmarks/startup.py).
"""

import atexit
import gc


def pause_collection() -> None:
    """To be called before imports that take seconds."""
    gc.disable()


def resume_collection() -> None:
    """Collects again, if it was paused; what exists now is only collected once the interpreter ends."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()
        atexit.register(gc.unfreeze)  # for libraries that report at the end what was not collected (nanobind)
