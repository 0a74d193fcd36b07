"""The processor of this machine.  Imports no torch."""

from contextlib import suppress
from pathlib import Path


def processor() -> str:
    """The processor's model on Linux, else nothing."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return ""
