"""The recorded outputs of Slurm's commands: files of sections, each with a command and what it printed."""

import re
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "outputs"
VERSIONS = tuple(sorted(file.stem for file in FOLDER.glob("*.txt")))
# `== running $ scontrol show job 7` begins a section; `exit code 1` and `stderr: …` may follow the output.
_BEGIN, _EXIT, _STDERR = re.compile(r"== (\S+) \$ (.*)"), re.compile(r"exit code (\d+)"), "stderr: "


@dataclass(frozen=True)
class Output:
    """What a command printed."""

    command: str
    stdout: str
    stderr: str = ""
    code: int = 0

    @property
    def lines(self) -> list[str]:
        """The lines of its standard output."""
        return self.stdout.splitlines()


def write(version: str, outputs: dict[str, Output]) -> Path:
    """Writes the recording of a version."""
    text = ""
    for name, output in outputs.items():
        text += f"== {name} $ {output.command}\n{output.stdout}"
        text += "" if output.stdout.endswith("\n") or not output.stdout else "\n"
        text += "".join(f"{_STDERR}{line}\n" for line in output.stderr.splitlines())
        text += f"exit code {output.code}\n" if output.code else ""
    file = FOLDER / f"{version}.txt"
    file.write_text(text)
    return file


def read(version: str) -> dict[str, Output]:
    """The recording of a version: outputs by name."""
    out = dict[str, Output]()
    name, command, stdout, stderr, code = "", "", "", "", 0
    for line in [*(FOLDER / f"{version}.txt").read_text().splitlines(), "== end $ "]:
        if begin := _BEGIN.fullmatch(line):
            if name:
                out[name] = Output(command, stdout, stderr, code)
            name, command, stdout, stderr, code = begin[1], begin[2], "", "", 0
        elif line.startswith(_STDERR):
            stderr += line.removeprefix(_STDERR) + "\n"
        elif exit_code := _EXIT.fullmatch(line):
            code = int(exit_code[1])
        else:
            stdout += line + "\n"
    return out
