"""Calls the checks of doctor.py, in this process, as the command does."""

from collections.abc import Callable, Iterable
from pathlib import Path

from jobs.doctor import doctor_parser, parse_request
from jobs.readiness.finding import Finding
from jobs.readiness.request import Request
from tests.helpers.paths import CONFIGS


def request(*options: object) -> Request:
    """What these options of the command request."""
    return parse_request(doctor_parser(), [str(option) for option in options])


def demo(betons: Path, *options: object) -> Request:
    """The demo's config with real data sets, and these options."""
    data = ("--data.train", betons / "train.beton", "--data.val", betons / "val.beton")
    return request("--config", CONFIGS / "demo.yaml", *data, *options)


def findings(check: Callable[[Request], Iterable[Finding]], of: Request) -> dict[str, Finding]:
    """The findings of a check, by their names; each name once."""
    found = list(check(of))
    assert len({finding.check for finding in found}) == len(found), found
    for finding in found:
        assert bool(finding.advice) == (finding.level != "OK"), f"what to do is said if something is wrong: {finding}"
    return {finding.check: finding for finding in found}
