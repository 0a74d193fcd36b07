"""Results of the cluster tests on each version of Slurm: the last one of each test, and the table of them."""

import fcntl
import json
from collections.abc import Sequence
from pathlib import Path

from tests.slurm_versions.chroots import Release

Result = dict[str, str]  # outcome (passed, failed, skipped), reason, seconds, commit
Results = dict[str, Result]  # by test, as pytest takes it on its command line


def file_of(folder: Path, release: Release) -> Path:
    """Where the results of a version are."""
    return folder / f"results-{release.slurm}.json"


def read(file: Path) -> Results:
    """The last result of each test; none if no test has run."""
    return json.loads(file.read_text()) if file.exists() else {}


def record(file: Path, test: str, result: Result) -> None:
    """Adds the result of a test; another command may do so at the same time."""
    with file.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        new = file.with_suffix(".new")
        new.write_text(json.dumps(read(file) | {test: result}, indent=1, sort_keys=True))
        new.replace(file)


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
