"""The rooms and their arrows, as the imports have them; and a README whose every command and link is there."""

import ast
import configparser
import importlib.util
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from jobs.login.run_folder import PACKAGES

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
ROOMS = ("vit", "jobs", "data_prep")


def name_of(path: Path) -> str:
    """`vit/data/__init__.py` -> `vit.data`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))}

# Where submitting happens: a login node must answer at once, and may have no torch.
NO_TORCH = (
    *(
        "vit.config.schema",
        "vit.config.parser",
        "vit.run.folder",
        "vit.run.heartbeat",
        "vit.run.metrics",
        "vit.data.ffcv_format",
    ),
    *(
        "jobs.submit",
        "jobs.login.resources",
        "jobs.login.local_run",
        "jobs.node.train_job",
        "jobs.report",
        "jobs.login.submit_options",
        "jobs.login.run_folder",
    ),
    *(
        "jobs.login.cluster_config",
        "jobs.login.slurm_queries",
        "jobs.login.sbatch",
        "jobs.login.sweep",
        "jobs.status",
        "jobs.login.prep_config",
        "jobs.login.prep_submit",
    ),
    *(
        "jobs.node.requeue_excluding",
        "jobs.node.restart_policy",
        "jobs.node.node_health",
        "jobs.node.requeue",
        "jobs.node.signals",
        "jobs.node.slurm_job",
        "jobs.node.forkserver",
    ),
)


def statements(node: ast.AST, at_import: bool) -> Iterator[ast.AST]:
    """Everything in a module, or only what runs when it is imported."""
    for child in ast.iter_child_nodes(node):
        deferred = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if not (at_import and (deferred or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)))):
            yield child
            yield from statements(child, at_import)


def imports(source: str, package: str, at_import: bool = False) -> set[str]:
    """The modules that a source names in its imports, ours as far as they are modules: `from vit import config` too."""
    found = set()
    for node in statements(ast.parse(source), at_import):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*package.split(".")[: -node.level + 1 or None], *filter(None, [node.module])])
            base = base if node.level else node.module or ""
            inside = {f"{base}.{alias.name}" for alias in node.names} & MODULES.keys()
            # What is no module is an attribute of the base, or of a package that is then imported itself.
            found |= inside | ({base} if len(inside) < len(node.names) else set())
    return found


@cache
def imports_of(module: str, at_import: bool = False) -> frozenset[str]:
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return frozenset(imports(path.read_text(), package, at_import))


def room(module: str) -> str:
    return module.partition(".")[0]


def test_imports_are_read_wherever_they_stand() -> None:
    """In functions, in classes, relative, of a package's module: else the tests below would see nothing."""
    source = """
import torch.nn as nn
from vit import train, verify
from . import loader
from ..model import attention_maps
if TYPE_CHECKING:
    import pandas
def later():
    from vit.evaluate import main
class Now:
    import numpy
"""
    always = {"torch.nn", "vit.train", "vit.verify", "vit.data.loader", "vit.model.attention_maps", "numpy"}
    assert imports(source, "vit.data") == always | {"vit.evaluate", "pandas"}
    assert imports(source, "vit.data", at_import=True) == always


@pytest.mark.parametrize("module", [m for m in MODULES if room(m) == "vit"])
def test_the_trainer_has_never_heard_of_jobs_or_of_writing_data_sets(module: str) -> None:
    """`vit` imports neither `jobs` nor `data_prep`, nor submitit, and reads none of Slurm's variables."""
    assert not {name for name in imports_of(module) if room(name) in ("jobs", "data_prep", "submitit")}
    assert "SLURM_" not in MODULES[module].read_text()


@pytest.mark.parametrize("module", [m for m in MODULES if room(m) == "vit"])
def test_nothing_is_read_of_the_environment_by_an_import(module: str) -> None:
    """Ranks are forks of a process that has done the imports before anybody knew what they would be."""
    nodes = statements(ast.parse(MODULES[module].read_text()), at_import=True)
    assert not [node for node in nodes if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv")]


@pytest.mark.parametrize("module", [m for m in MODULES if room(m) == "data_prep"])
def test_writing_a_data_set_needs_neither_of_the_other_rooms(module: str) -> None:
    """`data_prep` imports neither `vit` nor `jobs`: what they share is a file format."""
    assert not {name for name in imports_of(module) if room(name) in ("vit", "jobs")}


@pytest.mark.parametrize("module", [m for m in MODULES if room(m) == "jobs"])
def test_jobs_know_no_more_of_the_trainer_than_its_config_and_what_it_writes_down(module: str) -> None:
    """Of `vit`: its config, ledger, heartbeat, progress line and the data set's manifest, even inside of functions.

    Of `data_prep`: its command line, so that what it would refuse is refused before a job is submitted.
    """
    allowed = {
        "vit.config.schema",
        "vit.config.parser",
        "vit.run.folder",
        "vit.run.heartbeat",
        "vit.run.metrics",
        "vit.data.ffcv_format",
    }
    if module == "jobs.login.prep_config":
        allowed |= {"data_prep.manifest", "data_prep.options"}
    assert {name for name in imports_of(module) if room(name) in ("vit", "data_prep")} <= allowed


@pytest.mark.parametrize("module", NO_TORCH)
def test_what_runs_on_a_login_node_imports_no_torch(module: str) -> None:
    """Neither itself nor through our own modules, when it is imported."""
    chains: dict[str, str] = {}  # how each module is reached
    waiting = [(module, "")]
    while waiting:
        name, by = waiting.pop()
        assert room(name) not in ("torch", "torchvision"), f"{by} imports {name}"
        for end in [i for i, c in enumerate(name + ".") if c == "."]:  # a package is imported before what it holds
            ours = name[:end]
            if ours in MODULES and ours not in chains:
                chains[ours] = f"{by} -> {ours}".removeprefix(" -> ")
                waiting += [(found, chains[ours]) for found in imports_of(ours, at_import=True)]
    assert module in chains


@pytest.mark.parametrize("module", MODULES)
def test_every_file_says_what_it_is_for_and_is_read_at_one_sitting(module: str) -> None:
    """A docstring, and at most 320 lines."""
    source = MODULES[module].read_text()
    assert ast.get_docstring(ast.parse(source)) or (not source and MODULES[module].name == "__init__.py")
    assert len(source.splitlines()) <= 320


def test_every_package_is_installed_and_goes_into_the_run_folder() -> None:
    """A folder that setup.cfg forgets is missing only where the package is installed: on the cluster."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = {name.strip() for name in setup["options"]["packages"].split()}
    folders = {path.parent.relative_to(ROOT).as_posix().replace("/", ".") for path in MODULES.values()}
    assert listed == folders
    assert all((ROOT / name.replace(".", "/") / "__init__.py").exists() for name in listed)
    assert set(PACKAGES) == {room(name) for name in listed}


def code(markdown: str) -> tuple[list[str], str]:
    """Lines of fenced and indented blocks and pieces of inline code; and the text without them."""
    lines: list[str] = []

    def keep(match: re.Match[str]) -> str:
        lines.extend(line.strip() for line in match[1].splitlines())
        return "\n"

    # A list's next paragraph is indented too: a block of code has four spaces and an empty line before it.
    for pattern in (r"^ *```[^\n]*\n(.*?)^ *```", r"(?<=\n\n)((?:(?: {4}|\t)[^\n]*\n|\n(?= {4}|\t))+)", r"`([^`]+)`"):
        markdown = re.sub(pattern, keep, markdown, flags=re.MULTILINE | re.DOTALL)
    return [line for line in lines if line], markdown


def commands(lines: list[str]) -> list[str]:
    """The commands among lines of code, without prompts and comments, joined where a line goes on."""
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    plain = re.sub(r"(^|\s)#.*", "", joined, flags=re.MULTILINE)
    return [part.strip() for part in re.split(r"&&|[;|\n]", plain)]


def missing(markdown: str) -> tuple[list[str], int]:
    """What a README names and is not there, and how many commands it has."""
    lines, text = code(markdown)
    wrong, count = [], 0
    targets = set(re.findall(r"^([\w-]+)(?:\s+[\w-]+)*:(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for command in commands(lines):
        scripts = re.findall(r"\bpython[\d.]*\s+((?!-)[\w./-]+\.py)\b", command)
        modules = re.findall(r"\b(?:python[\d.]*|torchrun)\s(?:.*\s)?-m\s+([\w.]+)", command)
        made = re.match(r"(?:\$ )?make((?:\s+[^\s]+)*)$", command)
        goals = [word for word in made[1].split() if "=" not in word and not word.startswith("-")] if made else []
        wrong += [path for path in scripts if not (ROOT / path).is_file()]
        wrong += [f"-m {name}" for name in modules if name not in MODULES and not installed(name)]
        wrong += [f"make {goal}" for goal in goals if goal not in targets]
        count += len(scripts) + len(modules) + bool(made)
    wrong += [
        path for line in lines for path in re.findall(r"configs/[\w.-]+\.yaml", line) if not (ROOT / path).exists()
    ]
    links = re.findall(r"\]\(\s*<?([^)\s>]+)", text) + re.findall(r"(?:src|href|srcset)=\"([^\"]+)\"", text)
    headings = re.findall(r"^#+ +(.+?) *$", re.sub(r"^ *```.*?^ *```", "", markdown, flags=re.M | re.S), re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    for link in links:
        path, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        if (path and not (ROOT / path).exists()) or (not path and anchor not in anchors):
            wrong.append(link)
    return wrong, count


def installed(module: str) -> bool:
    """Whether `python -m` finds a module that is not ours."""
    try:
        return room(module) not in ROOMS and importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def test_every_command_link_and_picture_of_the_readme_is_there() -> None:
    """Scripts, modules, make's targets, configs and files: whoever copies a line finds what it names."""
    wrong, count = missing(README)
    assert not wrong
    assert count > 0 or not README.strip(), "a README without a command"


def test_a_readme_with_wrong_commands_would_be_found_out() -> None:
    """One of each kind, next to a right one; words in sentences are no commands."""
    text = """# A title, of `vit_b16`

We make things and use python script.py, see [there](#a-title-of-vit_b16), [home](https://example.org/none) and
[not](#there), ![curve](none.png) <img src="none.svg"> [setup](setup.cfg).

    make demo test   # and make coffee
    make cofee PYTHON=python3 -j2

- a list

  ```sh
  $ python jobs/submit.py --config configs/vit_b16.yaml && python3 jobs/sumbit.py \\
      --config configs/none.yaml
  torchrun --nproc-per-node 2 -m vit.train
  python -m vit.trian; python -m pytest; python -m no_such_module.at_all
  ```

and `configs/nil.yaml`, or `make tea` in a line.
"""
    wrong, count = missing(text)
    assert sorted(wrong) == sorted(
        [
            *("#there", "none.png", "none.svg", "make cofee", "jobs/sumbit.py", "configs/none.yaml"),
            *("-m vit.trian", "-m no_such_module.at_all", "configs/nil.yaml", "make tea"),
        ]
    )
    assert count == 9
