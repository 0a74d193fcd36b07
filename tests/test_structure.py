"""The dependencies between the components of the code."""

import ast
import configparser
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from jobs.login.run_files import PACKAGES
from tests.helpers.paths import ROOT

# The other components that each component may import.  A component is a package, or a module directly in `vit/`.
# Each one may import only components that are listed above it, so that there are no import cycles.
ALLOWED_IMPORTS = {
    "vit.config": "",
    "vit.random_keys": "",
    "vit.run": "vit.config",
    "vit.history": "vit.config vit.run",
    "vit.distributed": "vit.config vit.run",
    "vit.integrity": "vit.config vit.run vit.history vit.distributed",
    "vit.model": "vit.config",
    "vit.optim": "vit.config vit.model",
    "vit.data": "vit.config vit.random_keys vit.run vit.distributed",
    "vit.checkpoint": "vit.config vit.random_keys vit.run vit.distributed vit.model vit.optim vit.data",
    "vit.augment": "vit.config vit.random_keys vit.run vit.data vit.checkpoint",
    "vit.training": (
        "vit.config vit.random_keys vit.run vit.history vit.distributed vit.model vit.data vit.augment vit.optim "
        "vit.checkpoint vit.integrity"
    ),
    "vit.replay": (
        "vit.config vit.random_keys vit.run vit.history vit.distributed vit.model vit.data vit.augment vit.optim "
        "vit.checkpoint vit.integrity vit.training"
    ),
    "vit.node_check": "vit.config vit.run vit.model vit.data",
    "vit.wandb_sender": "vit.config vit.run vit.history",
    "vit.node_benchmark": "vit.config vit.run vit.distributed vit.model vit.checkpoint vit.training",
    "vit.train": "vit.config vit.run vit.history vit.distributed vit.data vit.checkpoint vit.integrity vit.training",
    "vit.kill_attempts": "vit.run vit.checkpoint vit.train",
    "vit.verify": "vit.config vit.run vit.data vit.checkpoint vit.kill_attempts",
    "vit.evaluate": "vit.config vit.run vit.distributed vit.data vit.checkpoint vit.training",
    "vit.attention_figure": "vit.run",
    "vit.prediction": "vit.config vit.run vit.distributed vit.data vit.checkpoint",
    "vit.predict": (
        "vit.attention_figure vit.prediction vit.config vit.run vit.distributed vit.model vit.data vit.augment "
        "vit.checkpoint"
    ),
    "vit.export": "vit.config vit.run vit.model vit.checkpoint",
    "data_prep.sources": "",
    "data_prep": "data_prep.sources vit.config vit.data vit.run",
    "jobs.slurm": "",
    "jobs.node": "jobs.slurm vit.config vit.run vit.history",
    "jobs.login": "jobs.slurm jobs.node vit.config vit.run vit.history vit.model vit.data vit.checkpoint data_prep",
    "jobs.readiness": (
        "jobs.slurm jobs.login jobs.node vit.config vit.run vit.history vit.model vit.data vit.checkpoint"
    ),
    "jobs.estimate": (
        "jobs.slurm jobs.readiness jobs.login jobs.node vit.config vit.run vit.history vit.model vit.data "
        "vit.checkpoint"
    ),
    "jobs.watch": "jobs.slurm jobs.login jobs.node vit.config vit.run vit.history",
    "jobs.page": "jobs.slurm jobs.watch jobs.login vit.config vit.run vit.history",
    "jobs": (
        "jobs.login jobs.node jobs.readiness jobs.estimate jobs.watch jobs.page vit.config vit.run vit.history "
        "vit.checkpoint"
    ),
}

# Between the top-level packages only these modules may be imported: they are small, and do not import torch.
ALLOWED_MODULES = {
    ("data_prep", "vit"): {
        *(
            "vit.data.ffcv_format",
            "vit.data.dataset_manifest",
            "vit.data.image_file",
            "vit.data.native",
            "vit.run.figures",
            "vit.run.fsync",
        ),
        *(
            "vit.config.paths",
            "vit.config.option_errors",
            "vit.config.user_error",
            "vit.run.command",
            "vit.run.console",
            "vit.run.counts",
            "vit.run.dependencies",
            "vit.run.hints",
        ),
    },
    ("jobs", "vit.data"): {"vit.data.dataset_manifest", "vit.data.native", "vit.data.ffcv_format"},
    ("jobs", "vit.model"): {"vit.model.weight_fit", "vit.model.fixed_positions"},
    ("jobs", "vit.checkpoint"): {
        "vit.checkpoint.format",
        "vit.checkpoint.initial_settings",
        "vit.checkpoint.weight_files",
        "vit.checkpoint.saved_classes",
    },
    ("vit.checkpoint", "vit.data"): {"vit.data.dataset_manifest", "vit.data.class_names"},
    ("jobs", "data_prep"): {"data_prep.options", "data_prep.publish"},
}

# These must not import torch: commands on a login node must start fast, and torch may not be installed there.
WITHOUT_TORCH = (
    *(
        "vit.config",
        "vit.run",
        "vit.history",
        "vit.data.dataset_manifest",
        "vit.data.class_names",
        "vit.data.ffcv_format",
    ),
    *("vit.data.image_file", "vit.data.native"),
    *("vit.checkpoint.format", "vit.checkpoint.saved_classes", "vit.checkpoint.initial_settings"),
    *("vit.distributed.launcher", "jobs", "data_prep"),
)
# Exceptions, which run on compute nodes: torch's elastic agent and the modules that import it, and torch's compiler.
WITH_TORCH = (
    "jobs.node.forkserver_compiler",
    "jobs.node.supervisor",
    "jobs.node.elastic_agent",
    "jobs.node.one_node_rendezvous",
    "jobs.node.peers",
    "jobs.node.watchdog",
    "jobs.node.diagnosis",
)


def module_name(path: Path) -> str:
    """`vit/data/__init__.py` -> `vit.data`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}


def component(module: str) -> str:
    """`vit.data.loader` -> `vit.data`; `vit.train` and `jobs` are components themselves."""
    folder = ".".join(MODULES[module].relative_to(ROOT).parts[:-1])
    return module if folder == "vit" and module != "vit" else folder


def is_in(module: str, *names: str) -> bool:
    """Whether a module is one of these modules, or in one of these packages."""
    return any(module == name or module.startswith(f"{name}.") for name in names)


def nodes(node: ast.AST, at_import: bool) -> Iterator[ast.AST]:
    """All nodes of a syntax tree, or only those that are executed when the module is imported."""
    for child in ast.iter_child_nodes(node):
        deferred = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if not (at_import and (deferred or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)))):
            yield child
            yield from nodes(child, at_import)


def imports(source: str, package: str, at_import: bool = False) -> set[str]:
    """The modules that a source imports.  `from vit import train` counts as `vit.train`."""
    found = set()
    for node in nodes(ast.parse(source), at_import):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*package.split(".")[: -node.level + 1 or None], *filter(None, [node.module])])
            base = base if node.level else node.module or ""
            inside = {f"{base}.{alias.name}" for alias in node.names} & MODULES.keys()
            # Other names are attributes of the base module, which is then imported itself.
            found |= inside | ({base} if len(inside) < len(node.names) else set())
    return found


@cache
def imports_of(module: str, at_import: bool = False) -> frozenset[str]:
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return frozenset(imports(path.read_text(), package, at_import))


def test_all_kinds_of_imports_are_found() -> None:
    """In functions and classes, relative, and of a module of a package; the tests below depend on it."""
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


def test_components_import_only_what_is_allowed() -> None:
    """Imports in functions count too."""
    violations = [
        f"{module} imports {name}"
        for module in MODULES
        for name in imports_of(module)
        if name in MODULES and component(name) not in {component(module), *ALLOWED_IMPORTS[component(module)].split()}
    ]
    violations += [
        f"{module} imports {name}"
        for module in MODULES
        for (importer, imported), allowed in ALLOWED_MODULES.items()
        for name in imports_of(module)
        if is_in(module, importer) and is_in(name, imported) and name in MODULES and name not in allowed
    ]
    assert not violations


def test_there_are_no_import_cycles() -> None:
    """Neither between components nor between modules."""
    components = list(ALLOWED_IMPORTS)
    assert {component(module) for module in MODULES} <= {*components, "vit"}
    for i, (name, allowed) in enumerate(ALLOWED_IMPORTS.items()):
        assert set(allowed.split()) <= set(components[:i]), name
    left = {module: {name for name in imports_of(module) if name in MODULES} - {module} for module in MODULES}
    while leaves := [module for module, names in left.items() if not names & left.keys()]:
        for module in leaves:
            del left[module]
    assert not left, "these modules import each other in a cycle"


def test_the_trainer_does_not_depend_on_slurm() -> None:
    """`vit` reads no SLURM_ environment variables, and does not import submitit."""
    for module, path in MODULES.items():
        if is_in(module, "vit"):
            assert "SLURM_" not in path.read_text(), module
            assert "submitit" not in imports_of(module), module


def test_importing_vit_does_not_read_environment_variables() -> None:
    """The fork server imports it before the environment variables of the ranks are set."""
    for module, path in MODULES.items():
        if is_in(module, "vit"):
            executed = nodes(ast.parse(path.read_text()), at_import=True)
            reads = [
                node for node in executed if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv")
            ]
            assert not reads, module


def test_code_for_the_login_node_does_not_import_torch() -> None:
    """Neither directly nor through our own modules, at import time."""
    for module in MODULES:
        if not is_in(module, *WITHOUT_TORCH) or module in WITH_TORCH:
            continue
        chains: dict[str, str] = {}  # the chain of imports to each module
        pending = [(module, "")]
        while pending:
            name, importer = pending.pop()
            assert name.partition(".")[0] not in ("torch", "torchvision"), f"{importer} imports {name}"
            for end in [i for i, c in enumerate(name + ".") if c == "."]:  # packages are imported before their modules
                ours = name[:end]
                if ours in MODULES and ours not in chains:
                    chains[ours] = f"{importer} -> {ours}".removeprefix(" -> ")
                    pending += [(found, chains[ours]) for found in imports_of(ours, at_import=True)]
        assert module in chains


def test_every_source_file_is_short_and_every_module_has_a_docstring() -> None:
    """At most 300 lines, tests, benchmarks and C++ included."""
    folders = [ROOT / name for name in (*PACKAGES, "tests", "benchmarks")]
    for path in [
        path for folder in folders for path in folder.rglob("*") if path.suffix in (".py", ".cpp", ".h", ".c")
    ]:
        source = path.read_text()
        assert len(source.splitlines()) <= 300, path
        documented = path.suffix != ".py" or ast.get_docstring(ast.parse(source))
        assert documented or (not source and path.name == "__init__.py"), path


def test_every_package_is_installed_and_copied_into_the_run_folder() -> None:
    """A package that is not listed in setup.cfg would be missing only in installed copies, as on a cluster."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = set(setup["options"]["packages"].split())
    folders = {path.parent.relative_to(ROOT).as_posix().replace("/", ".") for path in MODULES.values()}
    assert listed == folders
    assert all((ROOT / name.replace(".", "/") / "__init__.py").exists() for name in listed)
    assert set(PACKAGES) == {name.partition(".")[0] for name in listed}
