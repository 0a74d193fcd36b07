"""The garbage collector does not go through the objects of imports, neither in a command's start nor later."""

import subprocess
import sys

import pytest

from tests.helpers.paths import CHECKOUT, CONFIGS

# Runs a command as `python -m` does, and counts the collections that go through all objects.
PROGRAM = """
import gc, runpy, sys
module, *sys.argv[1:] = sys.argv[1:]
full = []
gc.callbacks.append(lambda phase, about: full.append(phase) if about["generation"] == 2 else None)
try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
except SystemExit:
    print("full collections:", full.count("start"))
    print("collects:", gc.isenabled())
    print("spared:", gc.get_freeze_count() > 100_000)
    gc.callbacks.clear()
"""


@pytest.mark.parametrize(
    "command", [("vit.train", "--config", str(CONFIGS / "demo.yaml"), "--print-config"), ("vit.predict", "--help")]
)
def test_a_command_starts_without_going_through_all_objects_and_collects_afterwards(command: tuple[str, ...]) -> None:
    """With the collector at work it would do so seven times during the imports.  At the end nothing is reported."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *command], cwd=CHECKOUT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-3:] == ["full collections: 0", "collects: True", "spared: True"]
    assert done.stderr == ""
