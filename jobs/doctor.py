"""Checks whether this cluster is ready for a run, before the first job: software, disks, data sets, Slurm.

python jobs/doctor.py --config configs/vit_b16.yaml --nodes 1 --gpus 4 --partition gpu
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if not __package__:  # run as a script: sys.path[0] is jobs/, except with PYTHONSAFEPATH
    sys.path[: not getattr(sys.flags, "safe_path", False)] = [str(ROOT)]
if __name__ == "__main__":
    from vit.run.dependencies import explain_missing_packages

    explain_missing_packages()  # before what an older Python does not have

import json
import os
import shutil
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict

from jobs.login.submit_options import add_cluster_options, add_runs_dir, add_size_options
from jobs.readiness.finding import LEVELS, Finding, Level, exit_code
from jobs.readiness.here import check_here
from jobs.readiness.job_stages import add_stage_options, check_stage_options, job_stages
from jobs.readiness.request import Request, read_request
from vit.checkpoint.initial_settings import InitialSettings
from vit.config.parser import Parser, config_parser, parse_config
from vit.config.user_error import UserError
from vit.run.command import print_error, run_command
from vit.run.console import started_as
from vit.run.counts import counted

COLORS: dict[Level, str] = {"OK": "32", "WARN": "33", "FAIL": "31"}  # of ANSI: green, yellow, red
LEVEL_WIDTH, CHECK_WIDTH = 4, 14  # characters of the first two columns
MIN_TEXT_WIDTH = 40


def doctor_parser() -> Parser:
    """A parser for every setting of a run, and for the stages and the job that are checked."""
    out = config_parser(started_as("doctor.py"), (__doc__ or "").partition("\n")[0], required=False)
    out.usage = f"{out.prog} [--config FILE] [options] [--setting value …]"
    group = out.add_argument_group("checks")
    add_size_options(group)
    add_runs_dir(group)
    add_stage_options(group)
    group.add_argument("--json", action="store_true", help="print one JSON object per check and line")
    add_cluster_options(out)
    general, groups = out._action_groups[:2], out._action_groups[2:]
    out._action_groups = [*general, *groups[-2:], *groups[:-2]]  # show them in --help before the run's settings
    return out


def parse_request(parser: Parser, args: list[str] | None) -> Request:
    """The arguments, checked.  Raises UserError; but a finding tells about initial weights that cannot be used."""
    settings = InitialSettings(may_fail=lambda *_: True)
    cfg, options = parse_config(parser, args, settings)
    return read_request(cfg, options, settings)


def stages(request: Request) -> Iterator[tuple[str, Iterable[Finding]]]:
    """The title and the findings of each stage that was requested; a later one may use what an earlier one measured."""
    yield "this machine", check_here(request)
    yield from job_stages(request)


def format_finding(finding: Finding, width: int, color: bool) -> str:
    """One line, or as many as it takes in `width` characters; 0: no limit.  What to do is below it."""
    indent = " " * (LEVEL_WIDTH + CHECK_WIDTH + 4)
    level = finding.level.ljust(LEVEL_WIDTH)
    if color:
        level = f"\x1b[{COLORS[finding.level]}m{level}\x1b[0m"
    text_width = max(MIN_TEXT_WIDTH, width - len(indent)) if width else 10**6
    lines = textwrap.wrap(finding.text, text_width, break_on_hyphens=False, break_long_words=False)
    advice = f"→ {finding.advice}" if finding.advice else ""
    lines += textwrap.wrap(advice, text_width, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False)
    first = f"{level}  {finding.check:{CHECK_WIDTH}}  "
    return first + f"\n{indent}".join(lines)


def verdict(findings: Sequence[Finding]) -> str:
    """The last sentence: ready, or what to mend first."""
    worst: Level = LEVELS[exit_code(findings)]
    first = next((finding for finding in findings if finding.level == worst), None)
    if first is None or worst == "OK":
        return f"ready: {counted(len(findings), 'check')}, all OK"
    count = sum(finding.level == worst for finding in findings)
    if worst == "WARN":
        return f"ready, with {counted(count, 'warning')}; the first one: {first.check}"
    return f"not ready: {counted(count, 'check')} failed; mend first: {first.check}: {first.text}"


def show(request: Request) -> list[Finding]:
    """Prints the findings of all stages as they come, and returns them."""
    on_terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if on_terminal else 0
    color = on_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    out: list[Finding] = []
    for title, found in stages(request):
        if not request.options.json:
            print(f"{title}" if not out else f"\n{title}")
        for finding in found:
            out.append(finding)
            line = json.dumps(asdict(finding)) if request.options.json else format_finding(finding, width, color)
            print(line, flush=True)
    return out


def main(args: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0 if all is well, 1 with warnings, 2 if a check failed."""
    parser = doctor_parser()
    try:
        request = parse_request(parser, args)
        check_stage_options(request)
    except (UserError, OSError) as error:
        print_error("doctor.py", error)
        return 2
    findings = show(request)
    if not request.options.json:
        print(f"\n{verdict(findings)}")
    return exit_code(findings)


if __name__ == "__main__":
    run_command(main)
