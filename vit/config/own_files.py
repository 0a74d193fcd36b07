"""The recipes and the clusters of this project: `configs/` of a checkout, which an installed copy has inside `vit`."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def is_checkout() -> bool:
    """Whether this source is a checkout, and not an installed copy or that of a run folder."""
    return (ROOT / "setup.cfg").is_file()


CONFIGS = ROOT / "configs" if is_checkout() else ROOT / "vit" / "configs"


def find_config(path: Path) -> Path:
    """The project's own file for a path such as `configs/demo.yaml` that is not in the working directory.

    Any other path is returned as it is, whether it exists or not.
    """
    if path.parts[:1] != ("configs",) or path.exists():
        return path
    own = CONFIGS.joinpath(*path.parts[1:])
    return own if own.is_file() else path
