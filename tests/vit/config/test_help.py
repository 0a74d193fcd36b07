"""`--help` explains every setting, and commands on a login node start without torch."""

import ast
import math
import re
import resource
import subprocess
import sys
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from tests.helpers.paths import CHECKOUT
from vit.config.parser import config_parser, parse_config
from vit.config.schema import Config, flatten


def every_setting(section: type = Config, prefix: str = "") -> list[tuple[str, str, Any]]:
    """Name, comment and default of every setting, read from the source independently of the parser."""
    source = Path(str(sys.modules[section.__module__].__file__)).read_text()
    tree, lines = ast.parse(source), source.splitlines()
    definition = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == section.__name__)
    hints, defaults, out = get_type_hints(section), section(), []
    for node in definition.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name = node.target.id
            if is_dataclass(hints[name]):
                out += every_setting(hints[name], f"{prefix}{name}.")
            else:
                comment = lines[node.lineno - 1].partition("  # ")[2]
                out.append((prefix + name, comment, getattr(defaults, name)))
    return out


def test_the_help_shows_every_setting_with_its_comment_and_its_default(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trailing comment of the field is the help text; the choices are listed."""
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as exited:
        parse_config(config_parser("vit"), ["--help"])
    assert exited.value.code == 0
    output = capsys.readouterr().out
    entries = dict(re.findall(r"^  --([\w.]+) VALUE((?:.*\n)(?: {10,}.*\n)*)", output, re.MULTILINE))
    assert entries.keys() == {name for name, _, _ in every_setting()} == flatten(Config()).keys()
    for name, comment, default in every_setting():
        text = "".join(entries[name].split())
        assert len(comment) > 5, f"{name} has no comment"
        assert "".join(comment.split()) in text, name
        if default and isinstance(default, tuple):
            assert text.endswith("])") and f"default:[{default[0]:.4g}," in text, name
        elif default in ("", ()):
            assert text.endswith("".join(comment.split())), name
        else:
            assert text.endswith(f"default:{str(default).lower() if isinstance(default, bool) else default})"), name
    assert "(cls|mean;default:cls)" in "".join(entries["model.pool"].split())


@pytest.mark.parametrize(
    "names", ["vit.config, vit.run.folder, vit.run.metrics, vit.data.dataset_manifest", "jobs.submit"]
)
def test_modules_for_login_nodes_import_neither_torch_nor_numpy(names: str) -> None:
    """In a new process, including all indirect imports."""
    program = f"import sys, {names}; print([m for m in ('torch', 'numpy', 'wandb') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_takes_less_than_a_second_and_imports_no_torch() -> None:
    """CPU time of `python jobs/submit.py --help`, the best of three; -X importtime lists the imported modules."""
    best = math.inf
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "jobs/submit.py", "--help"], cwd=CHECKOUT, capture_output=True, text=True, check=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert "--config" in done.stdout
    assert best < 1
    listed = subprocess.run(
        [sys.executable, "-X", "importtime", "jobs/submit.py", "--help"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in listed.splitlines()}
    assert "jsonargparse" in imported
    assert not imported & {"torch", "numpy"}
