"""Runs the cluster tests on the Slurm versions of several Debian and Ubuntu releases, and prints a table.

python -m tests.slurm_versions                                   all tests on all versions (make cluster-versions)
python -m tests.slurm_versions --short --versions 24.11          those that make test runs, on one version: minutes
python -m tests.slurm_versions --rest                            those that failed, and those that have not run
python -m tests.slurm_versions --table                           the table of the runs so far
python -m tests.slurm_versions --versions 26.05 -- -k requeue    with options of pytest
"""

import argparse
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.helpers.paths import ROOT
from tests.slurm_versions import results
from tests.slurm_versions.chroots import RELEASES, ChrootError, Release, build, inside, why_not

FOLDER = Path("/var/cache/vit-slurm")  # a chroot takes 0.7 GB


def main() -> None:
    """The command line."""
    options, pytest_options = _arguments(sys.argv[1:])
    releases = [release for release in RELEASES if release.slurm in options.versions]
    if options.table:
        print(_table(options, releases))
        return
    if why := why_not():
        sys.exit(f"slurm_versions: {why}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends pytest, too
    failed = False
    for release in releases:
        try:
            failed |= run(release, options, pytest_options)
        except ChrootError as error:
            print(f"slurm_versions: {error}", file=sys.stderr)
            failed = True
    print(_table(options, releases))
    sys.exit(failed)


def run(release: Release, options: argparse.Namespace, pytest_options: Sequence[str]) -> bool:
    """Runs the tests on one version, which records their results; returns whether any test failed."""
    root = build(release, options.folder)
    chosen = list(pytest_options)
    if not any(word.startswith("tests/") for word in chosen):
        chosen += ["tests/cluster"]
    marker = "not campaign" if options.short else "campaign or not campaign"
    command = [sys.executable, "-m", "pytest", "-vv", "-p", "no:cacheprovider", "-m", marker]
    command += ["-p", "tests.slurm_versions.recording", "--results", str(results.file_of(options.folder, release))]
    command += ["--commit", _commit(), *(["--rest"] if options.rest else [])]
    command += ["--numprocesses", str(options.numprocesses), "--dist", "worksteal", *chosen]
    print(f"Slurm {release.slurm} ({release.name}): {' '.join(chosen)}", flush=True)
    code = subprocess.call([*inside(root, options.folder), *command])
    return code not in (0, 5)  # 5: no test was chosen


def _table(options: argparse.Namespace, releases: Sequence[Release]) -> str:
    return results.table([(release, results.read(results.file_of(options.folder, release))) for release in releases])


def _commit() -> str:
    """The state of the project; a chroot has no git."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _arguments(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Our options, and those of pytest after `--`."""
    ours, more = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    known = ",".join(release.slurm for release in RELEASES)
    parser = argparse.ArgumentParser(
        prog="python -m tests.slurm_versions", description="Runs the cluster tests on several versions of Slurm."
    )
    parser.add_argument("--versions", default=known, help=f"some of {known}")
    parser.add_argument("--short", action="store_true", help="without the tests marked campaign")
    parser.add_argument("--rest", action="store_true", help="only tests that have not passed yet")
    parser.add_argument("--table", action="store_true", help="print the table of the runs so far")
    parser.add_argument("--numprocesses", type=int, default=3, help="tests at a time, each with a cluster")
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"of chroots and results; default {FOLDER}")
    options = parser.parse_args(ours)
    options.versions = options.versions.split(",")
    if unknown := set(options.versions) - set(known.split(",")):
        parser.error(f"no release with Slurm {', '.join(sorted(unknown))} is known; known: {known}")
    options.folder = options.folder.resolve()
    return options, more


if __name__ == "__main__":
    main()
