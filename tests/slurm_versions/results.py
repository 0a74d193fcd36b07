"""Results of the cluster tests on each version of Slurm: the last one of each test, and the table of them."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from tests.helpers.paths import ROOT
from tests.slurm_versions.chroots import Release

Results = dict[str, dict[str, str]]  # test id -> outcome (passed, failed, skipped), reason, commit


def record(folder: Path, release: Release, report: Path) -> None:
    """Adds the tests of a JUnit report of pytest to the results of a version."""
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    ).stdout.strip()
    out = read(folder, release)
    for case in ElementTree.parse(report).iter("testcase"):
        bad = case.find("failure") if case.find("failure") is not None else case.find("error")
        skipped = case.find("skipped")
        reason = bad if bad is not None else skipped
        out[_test_id(case)] = {
            "outcome": "failed" if bad is not None else "skipped" if skipped is not None else "passed",
            "reason": "" if reason is None else reason.get("message", ""),
            "seconds": case.get("time", ""),
            "commit": commit,
        }
    _file(folder, release).write_text(json.dumps(out, indent=1, sort_keys=True))


def read(folder: Path, release: Release) -> Results:
    """The last result of each test on a version."""
    file = _file(folder, release)
    return json.loads(file.read_text()) if file.exists() else {}


def failed(folder: Path, release: Release) -> list[str]:
    """The tests that failed the last time they ran on a version."""
    return sorted(test for test, result in read(folder, release).items() if result["outcome"] == "failed")


def table(columns: Sequence[tuple[Release, Results]]) -> str:
    """A Markdown table: files of tests against versions, tests that passed of those that ran; then what failed."""
    files = sorted({test.partition("::")[0] for _, found in columns for test in found})
    rows = [["tests", *(f"{release.slurm} ({release.name})" for release, _ in columns)]]
    rows.append(["---", *("---:" for _ in columns)])
    for file in files:
        rows.append([Path(file).stem.removeprefix("test_"), *(_cell(file, found) for _, found in columns)])
    rows.append(["all", *(_cell("", found) for _, found in columns)])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    for release, found in columns:
        for test, result in sorted(found.items()):
            if result["outcome"] != "passed":
                reason = (result["reason"].splitlines() or [""])[0]
                lines.append(f"{release.slurm}: {result['outcome']} {test}: {reason[:200]}")
    return "\n".join(lines)


def _cell(file: str, found: Results) -> str:
    outcomes = [result["outcome"] for test, result in found.items() if test.startswith(file)]
    ran = [outcome for outcome in outcomes if outcome != "skipped"]
    return f"{ran.count('passed')} of {len(ran)}" if ran else "-"


def _test_id(case: ElementTree.Element) -> str:
    """As pytest takes it on its command line."""
    words = case.get("classname", "").split(".")
    return f"{'/'.join(words)}.py::{case.get('name')}"


def _file(folder: Path, release: Release) -> Path:
    return folder / f"results-{release.slurm}.json"
