"""The rooms of the code, and which of them imports which."""

import ast
import configparser
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from jobs.login.run_folder import PACKAGES
from tests.helpers.paths import ROOT

# What each room may import of the others.  A room is a folder, or one of the modules that stand alone in `vit/`.
# What is not in a line is not allowed, and no line leads back: the order is from the leaves to the commands.
ARROWS = {
    "vit.config": "",
    "vit.random_keys": "",
    "vit.run": "vit.config",
    "vit.distributed": "vit.config",
    "vit.model": "vit.config",
    "vit.optim": "vit.config vit.model",
    "vit.data": "vit.config vit.random_keys vit.run vit.distributed",
    "vit.augment": "vit.config vit.random_keys vit.data",
    "vit.checkpoint": "vit.config vit.random_keys vit.run vit.distributed vit.model vit.optim",
    "vit.training": "vit.config vit.random_keys vit.run vit.distributed vit.data vit.augment vit.optim vit.checkpoint",
    "vit.node_check": "vit.config vit.run vit.model vit.data",
    "vit.train": "vit.config vit.run vit.distributed vit.data vit.checkpoint vit.training",
    "vit.kill_attempts": "vit.run vit.checkpoint vit.train",
    "vit.verify": "vit.config vit.run vit.data vit.checkpoint vit.kill_attempts",
    "vit.evaluate": "vit.config vit.distributed vit.data vit.checkpoint vit.training",
    "vit.predict": "vit.config vit.distributed vit.model vit.data vit.augment vit.checkpoint",
    "vit.export": "vit.model vit.checkpoint",
    "data_prep.sources": "",
    "data_prep": "data_prep.sources vit.data vit.run",
    "jobs.node": "vit.config vit.run",
    "jobs.login": "jobs.node vit.config vit.run vit.data data_prep",
    "jobs": "jobs.login vit.config vit.run",
}

# Between the packages, single modules: small, and without torch.
ONLY = {
    ("data_prep", "vit"): {"vit.data.ffcv_format", "vit.data.dataset_manifest", "vit.run.fsync"},
    ("jobs", "vit.data"): {"vit.data.dataset_manifest"},
    ("jobs", "data_prep"): {"data_prep.options", "data_prep.publish"},
}

# Not at import: a login node must answer at once, and may have no torch.
WITHOUT_TORCH = ("vit.config", "vit.run", "vit.data.dataset_manifest", "vit.data.ffcv_format", "jobs", "data_prep")
# On compute nodes: torch's elastic agent and what it stands on.
WITH_TORCH = (
    "jobs.node.supervisor",
    "jobs.node.elastic_agent",
    "jobs.node.peers",
    "jobs.node.watchdog",
    "jobs.node.diagnosis",
)


def name_of(path: Path) -> str:
    """`vit/data/__init__.py` -> `vit.data`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}


def room(module: str) -> str:
    """`vit.data.loader` -> `vit.data`; `vit.train` and `jobs` are rooms themselves."""
    folder = ".".join(MODULES[module].relative_to(ROOT).parts[:-1])
    return module if folder == "vit" and module != "vit" else folder


def below(module: str, *names: str) -> bool:
    """Whether a module is one of these, or in one of these packages."""
    return any(module == name or module.startswith(f"{name}.") for name in names)


def statements(node: ast.AST, at_import: bool) -> Iterator[ast.AST]:
    """Everything in a module, or only what runs when it is imported."""
    for child in ast.iter_child_nodes(node):
        deferred = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if not (at_import and (deferred or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)))):
            yield child
            yield from statements(child, at_import)


def imports(source: str, package: str, at_import: bool = False) -> set[str]:
    """The modules that a source names in its imports, ours as far as they are modules: `from vit import train` too."""
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


def test_imports_are_read_wherever_they_stand() -> None:
    """In functions, in classes, relative, of a package's module: else the tests below would see nothing."""
    source = """
import torch.nn as nn
from vit import train, config
from . import loader
from ..model import attention_maps
if TYPE_CHECKING:
    import pandas
def later():
    from vit.evaluate import main
class Now:
    import numpy
"""
    always = {"torch.nn", "vit.train", "vit.config", "vit.data.loader", "vit.model.attention_maps", "numpy"}
    assert imports(source, "vit.data") == always | {"vit.evaluate", "pandas"}
    assert imports(source, "vit.data", at_import=True) == always


def test_rooms_import_only_what_the_table_allows() -> None:
    """Imports inside of functions count too."""
    wrong = [
        f"{module} imports {name}"
        for module in MODULES
        for name in imports_of(module)
        if name in MODULES and room(name) not in {room(module), *ARROWS[room(module)].split()}
    ]
    wrong += [
        f"{module} imports {name}"
        for module in MODULES
        for (importer, imported), allowed in ONLY.items()
        for name in imports_of(module)
        if below(module, importer) and below(name, imported) and name in MODULES and name not in allowed
    ]
    assert not wrong


def test_no_arrow_leads_back() -> None:
    """The table's lines name only rooms of lines above; nor is there a circle of modules inside of a room."""
    rooms = list(ARROWS)
    assert {room(module) for module in MODULES} <= {*rooms, "vit"}
    for i, (name, allowed) in enumerate(ARROWS.items()):
        assert set(allowed.split()) <= set(rooms[:i]), name
    left = {module: {name for name in imports_of(module) if name in MODULES} - {module} for module in MODULES}
    while leaves := [module for module, names in left.items() if not names & left.keys()]:
        for module in leaves:
            del left[module]
    assert not left, "these modules import each other in a circle"


def test_the_trainer_knows_nothing_of_slurm() -> None:
    """`vit` reads none of Slurm's variables, and does not import submitit."""
    for module, path in MODULES.items():
        if below(module, "vit"):
            assert "SLURM_" not in path.read_text(), module
            assert "submitit" not in imports_of(module), module


def test_nothing_is_read_of_the_environment_by_an_import() -> None:
    """Ranks are forks of a process that has done the imports before anybody knew what they would be."""
    for module, path in MODULES.items():
        if below(module, "vit"):
            nodes = statements(ast.parse(path.read_text()), at_import=True)
            read = [node for node in nodes if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv")]
            assert not read, module


def test_what_runs_on_a_login_node_imports_no_torch() -> None:
    """Neither itself nor through our own modules, when it is imported."""
    for module in MODULES:
        if not below(module, *WITHOUT_TORCH) or module in WITH_TORCH:
            continue
        chains: dict[str, str] = {}  # how each module is reached
        waiting = [(module, "")]
        while waiting:
            name, by = waiting.pop()
            assert name.partition(".")[0] not in ("torch", "torchvision"), f"{by} imports {name}"
            for end in [i for i, c in enumerate(name + ".") if c == "."]:  # a package is imported before what it holds
                ours = name[:end]
                if ours in MODULES and ours not in chains:
                    chains[ours] = f"{by} -> {ours}".removeprefix(" -> ")
                    waiting += [(found, chains[ours]) for found in imports_of(ours, at_import=True)]
        assert module in chains


def test_every_file_says_what_it_is_for_and_is_read_at_one_sitting() -> None:
    """A docstring, and at most 320 lines."""
    for module, path in MODULES.items():
        source = path.read_text()
        assert ast.get_docstring(ast.parse(source)) or (not source and path.name == "__init__.py"), module
        assert len(source.splitlines()) <= 320, module


def test_every_package_is_installed_and_goes_into_the_run_folder() -> None:
    """A folder that setup.cfg forgets is missing only where the package is installed: on the cluster."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = set(setup["options"]["packages"].split())
    folders = {path.parent.relative_to(ROOT).as_posix().replace("/", ".") for path in MODULES.values()}
    assert listed == folders
    assert all((ROOT / name.replace(".", "/") / "__init__.py").exists() for name in listed)
    assert set(PACKAGES) == {name.partition(".")[0] for name in listed}
