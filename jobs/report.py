"""Shows what runs learned and where their time went: a page (HTML), or a picture of their learning curves.

python jobs/report.py runs/vit_b16
python jobs/report.py runs/sweep runs/vit_b16 --out runs/comparison.html
python jobs/report.py runs/interrupted --over runs/undisturbed --out runs/interrupted/curve.png
"""

import gc
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if not __package__:  # run as a script: sys.path[0] is jobs/, except with PYTHONSAFEPATH
    sys.path[: not getattr(sys.flags, "safe_path", False)] = [str(ROOT)]
if __name__ == "__main__":
    from vit.run.dependencies import explain_missing_packages

    explain_missing_packages()  # before what an older Python does not have
    gc.disable()  # a long run has hundreds of thousands of records, which are no garbage

import errno

from jobs.page.write import PAGES, PICTURES, Report
from vit.config.option_errors import CommandParser
from vit.config.paths import user_path
from vit.config.user_error import UserError
from vit.run.command import print_error, run_command
from vit.run.console import started_as


def main(args: list[str] | None = None) -> int:
    """The command line; returns the exit code: 1 if a path could not be shown, or nothing."""
    parser = CommandParser(prog=started_as("report.py"), description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "runs", type=user_path, nargs="+", metavar="RUN", help="run folder, or a folder of runs such as a sweep"
    )
    parser.add_argument(
        "--out",
        type=user_path,
        help=f"page ({', '.join(PAGES)}) or picture ({', '.join(PICTURES)}) to write "
        "(default: report.html in the folder that was named, or beside the first of several)",
    )
    parser.add_argument(
        "--over", type=user_path, metavar="RUN", help="run to draw below the others, as a wide line to compare with"
    )
    parser.add_argument("--dark", action="store_true", help="pictures on a dark background; pages adapt by themselves")
    parser.add_argument(
        "--each", action="store_true", help="one line for each run; runs that differ only in their seed else share one"
    )
    parser.add_argument("--title", default="", help="(default: the names of the runs)")
    options = parser.parse_args(args)
    try:
        report = Report(
            options.runs, options.out, options.over, "dark" if options.dark else "light", options.title, options.each
        )
        report.write()
    except (UserError, OSError) as error:
        unwritable = isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
        advice = "choose a writable folder with --out" if unwritable and options.out is None else ""
        print_error("report.py", error, advice)
        return 1
    for problem in report.problems:
        print_error("report.py", problem)
    for path in report.written:
        print(path)
    for line in report.seeds():
        print(line)
    return 1 if report.problems else 0


if __name__ == "__main__":
    run_command(main)
