"""The commands of an installation: `vit-submit` is `python -m jobs.submit`, and so on, in any folder.

setup.cfg names the functions of this module.  Imports only the standard library: the command itself reports a package
that is not installed.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn

MODULES: dict[str, str] = {}  # the module of each command
_started: Path | None = None  # the command that this process is


def started_as(program: str) -> str:
    """The command with which the user started this process, or else `program`, for messages."""
    return _started.name if _started else program


def folder() -> Path | None:
    """Where the commands are, if this process is one of them."""
    return _started.parent if _started else None


def adapted(text: str) -> str:
    """A help text with the commands as this user types them."""
    for name, module in MODULES.items() if _started else ():
        text = text.replace(f"python -m {module}", name)
    return text


def name_of(program: str) -> str:
    """The command for a script (`jobs/status.py`) or a module (`vit.predict`); empty if there is none."""
    module = program.removesuffix(".py").replace("/", ".")
    return next((name for name, other in MODULES.items() if other == module), "")


def _run(name: str) -> NoReturn:
    import runpy  # not at the top: only for this

    global _started  # noqa: PLW0603
    _started = Path(sys.argv[0]).absolute().with_name(name)  # a link may have another name
    try:
        runpy.run_module(MODULES[name], run_name="__main__", alter_sys=True)
    except KeyboardInterrupt:  # during the imports
        sys.exit(130)
    sys.exit()


def _command(name: str, module: str) -> Callable[[], NoReturn]:
    MODULES[name] = module
    return partial(_run, name)


submit = _command("vit-submit", "jobs.submit")
status = _command("vit-status", "jobs.status")
report = _command("vit-report", "jobs.report")
doctor = _command("vit-doctor", "jobs.doctor")
train = _command("vit-train", "vit.train")
verify = _command("vit-verify", "vit.verify")
evaluate = _command("vit-evaluate", "vit.evaluate")
predict = _command("vit-predict", "vit.predict")
export = _command("vit-export", "vit.export")
augment = _command("vit-augment", "vit.augment")
replay = _command("vit-replay", "vit.replay")
node_check = _command("vit-node-check", "vit.node_check")
node_benchmark = _command("vit-node-benchmark", "vit.node_benchmark")
wandb_sender = _command("vit-wandb-sender", "vit.wandb_sender")
write_beton = _command("vit-write-beton", "data_prep.write_beton")
check_beton = _command("vit-check-beton", "data_prep.check_beton")
describe_beton = _command("vit-describe-beton", "data_prep.describe_beton")
