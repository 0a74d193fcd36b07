"""The benchmark of starts, which the README quotes, runs and prints all its figures."""

import json
import subprocess
import sys

from tests.helpers.paths import ROOT


def test_the_benchmark_of_starts_prints_a_start_and_its_parts() -> None:
    """As a fork, which is the quickest; the results of full runs are left alone."""
    command = [sys.executable, str(ROOT / "benchmarks" / "startup.py"), "--only", "new-fork", "--rounds", "1"]
    results = ROOT / "benchmarks" / "results" / "startup.json"
    before = results.read_bytes()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    (case,) = figures["cases"].values()
    assert case["parts_s"].keys() >= {"fork", "config", "process group", "data", "model", "graphs", "step"}
    assert figures["vs_parts"] == case["vs_parts"] > 0 and case["start_s"] > case["parts_s"]["step"] > 0
    assert results.read_bytes() == before
