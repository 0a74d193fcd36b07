"""The versions of Slurm that are tested; jobs/README.md says what differs between them.

The tests have recorded what the commands of each version print: tests/jobs/slurm/outputs.  `make cluster-versions` runs
the tests of jobs in each.
"""

import re

TESTED = ("22.05", "23.11", "24.11", "25.11", "26.05")


def remark(version: str) -> str:
    """Why a version like `24.11.5` may differ from the tested ones; "" if it is one of them, or between them."""
    release = re.match(r"\d\d\.\d\d", version)
    if release and release[0] < TESTED[0]:
        return f"older than {TESTED[0]}, the oldest version that is tested"
    if release and release[0] > TESTED[-1]:
        return f"newer than {TESTED[-1]}, the newest version that is tested"
    return ""
