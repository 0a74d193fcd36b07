"""Checks versions of Python and libraries, and the C++ extensions.  Imports none of the libraries that take long."""

import platform
from collections.abc import Iterator

from jobs.readiness.finding import Finding
from jobs.readiness.request import Request


def check_software(request: Request) -> Iterator[Finding]:
    """Versions of Python and of the libraries."""
    yield Finding("Python", "OK", platform.python_version())
