"""A wrong option of any command is explained in one line: its name, what it takes, the value, its help."""

import argparse
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep import check_beton, describe_beton, write_beton
from jobs import doctor, report, status, submit
from tests.helpers.paths import CONFIGS
from vit import evaluate, export, predict, verify
from vit.augment import __main__ as augment

DEMO = ["--config", str(CONFIGS / "demo.yaml")]
JARGON = re.compile(r"<class|typing\.|Traceback|Parser key|Expected a|invalid \w+ value|argument --|usage:|Got value")
WHOLE, CHOICES = "a whole number", "auto, cuda or cpu"
FOLDER = ["imagefolder", "images", "--out", "a.beton"]

# Command, correct arguments, wrong option, its value, what the message says.
WRONG = [
    (submit.main, DEMO, "--nodes", "x", WHOLE),
    (submit.main, DEMO, "--nodes", "1.5", WHOLE),
    (submit.main, DEMO, "--gpus", "two", WHOLE),
    (submit.main, DEMO, "--gpus", "0", "at least 1"),
    (submit.main, DEMO, "--cluster", "slrum", "did you mean 'slurm'?"),
    (submit.main, DEMO, "--max-restarts", "-1", "at least 0"),
    (submit.main, DEMO, "--max-requeues", "-2", "at least 0"),
    (submit.main, DEMO, "--max-same-step", "0", "at least 1"),
    (submit.main, DEMO, "--stall-seconds", "soon", "a number"),
    (submit.main, DEMO, "--stall-seconds", "-5", "positive"),
    (submit.main, DEMO, "--extend", "much", WHOLE),
    (submit.main, DEMO, "--cpus-per-gpu", "x", WHOLE),
    (submit.main, DEMO, "--exclusive", "maybe", "true or false"),
    (submit.main, DEMO, "--time", "24h", "HH:MM:SS"),
    (submit.main, DEMO, "--signal", "TERM", "USR2@SECONDS"),
    (submit.main, DEMO, "--mem", "lots", "240G"),
    (submit.main, DEMO, "--sweep", "optim.lr=1e-3,fast", "optim.lr must be a number, not 'fast'"),
    (submit.main, DEMO, "--sweep", "optim.lrr=1,2", "did you mean 'optim.lr'?"),
    (submit.main, DEMO, "--sweep", "epochs=1,0", "epochs must be positive, not 0"),
    (doctor.main, [], "--gpus", "x", WHOLE),
    (status.main, [], "--every", "often", "a number"),
    (predict.main, ["run", "a.jpg"], "--top", "x", WHOLE),
    (predict.main, ["run", "a.jpg"], "--device", "gpu", CHOICES),
    (evaluate.main, ["run"], "--device", "gpu", CHOICES),
    (export.main, ["run"], "--to", "tim", "did you mean 'timm'?"),
    (verify.main, DEMO, "--kills", "x", WHOLE),
    (augment.main, DEMO, "--images", "x", WHOLE),
    (write_beton.main, FOLDER, "--quality", "high", WHOLE),
    (write_beton.main, FOLDER, "--mode", "jpeg", "did you mean 'jpg'?"),
    (write_beton.main, FOLDER, "--workers", "0", "at least 1"),
    (check_beton.main, ["a.beton"], "--count", "x", WHOLE),
    (describe_beton.main, ["a.beton"], "--workers", "x", WHOLE),
]


def message_of(capsys: pytest.CaptureFixture[str], main: Callable[[list[str]], object], arguments: list[str]) -> str:
    """The one line on stderr with which a command refuses its arguments, with code 2."""
    try:
        code = main(arguments)
    except SystemExit as exited:
        code = exited.code
    out, err = capsys.readouterr()
    assert (code, out) == (2, ""), err
    assert len(err.splitlines()) == 1, err
    assert not JARGON.search(err), err
    return err


@pytest.mark.parametrize(("main", "arguments", "option", "value", "words"), WRONG)
def test_a_wrong_value_of_an_option_is_explained(
    capsys: pytest.CaptureFixture[str],
    main: Callable[[list[str]], object],
    arguments: list[str],
    option: str,
    value: str,
    words: str,
    tmp_path: Path,
) -> None:
    """With the option as it is typed and the value."""
    runs = ["--runs-dir", str(tmp_path)] if main is submit.main else []
    message = message_of(capsys, main, [*arguments, *runs, option, value])
    assert option.removeprefix("--") in message and words in message, message
    assert value.rpartition(",")[2].rpartition("=")[2] in message or option == "--sweep", message


@pytest.mark.parametrize(
    ("main", "arguments", "words"),
    [
        (submit.main, [], "--config FILE is required"),
        (submit.main, [str(CONFIGS / "demo.yaml")], "did you mean --config "),
        (submit.main, [*DEMO, "epochs=3"], "unexpected argument 'epochs=3'; write two hyphens: --epochs=3"),
        (submit.main, [*DEMO, "\u2014epochs", "3"], "write two hyphens: --epochs"),
        (submit.main, [*DEMO, "-nodes", "3"], "unknown option -nodes; write two hyphens: --nodes"),
        (submit.main, [*DEMO, "--node", "2"], "unknown setting 'node'; did you mean 'nodes'?"),
        (submit.main, [*DEMO, "--hours", "5"], "unknown setting 'hours'; did you mean 'time'?"),
        (submit.main, [*DEMO, "--batch-size", "64"], "did you mean 'global_batch'?"),
        (submit.main, [*DEMO, "--learning_rate", "64"], "did you mean 'optim.lr'?"),
        (submit.main, [*DEMO, "--nodes"], "--nodes has no value; give a value: N  (number of nodes, or a range"),
        (submit.main, [*DEMO, "--runs-dir"], "--runs-dir has no value; give a path"),
        (submit.main, [*DEMO, "--dry-run=yes"], "--dry-run takes no value, not 'yes'"),
        (report.main, [], "RUN is required  (see --help)"),
        (report.main, ["a", "--ouput", "x"], "unknown option --ouput; did you mean '--out'?"),
        (predict.main, ["run"], "give images after the run folder, or --samples N"),
        (predict.main, [], "run and IMAGE are required"),
        (predict.main, ["run", "a.jpg", "--atention", "x"], "did you mean '--attention'?"),
        (export.main, ["run"], "--to is required"),
        (write_beton.main, [], "SOURCE is required"),
        (write_beton.main, ["imagefoldr", "a"], "did you mean 'imagefolder'?"),
        (write_beton.main, ["imagefolder", "a"], "--out is required"),
        (write_beton.main, [*FOLDER, "--qualty", "9"], "did you mean '--quality'?"),
    ],
)
def test_missing_and_misspelled_options_are_explained(
    capsys: pytest.CaptureFixture[str], main: Callable[[list[str]], object], arguments: list[str], words: str
) -> None:
    """With the nearest one, or what is missing."""
    assert words in message_of(capsys, main, arguments)


def test_python_still_says_what_the_messages_are_made_from() -> None:
    """If argparse changes its texts, they would be printed as they are."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--top", type=int)
    with pytest.raises(argparse.ArgumentError, match=r"^argument --top: invalid int value: 'x'$"):
        parser.parse_args(["--top", "x"])
    with pytest.raises(argparse.ArgumentError, match=r"^argument --top: expected one argument$"):
        parser.parse_args(["--top"])
