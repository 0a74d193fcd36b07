"""Every command, link, picture and config that a README mentions exists."""

import importlib.util
import re
from pathlib import Path

from tests.helpers.paths import ROOT

READMES = [ROOT / "README.md", *sorted(ROOT.glob("[a-z]*/README.md"))]
PACKAGES = ("vit", "jobs", "data_prep", "tests", "benchmarks")


def split_code(markdown: str) -> tuple[list[str], str]:
    """Splits Markdown into its code (lines of blocks, and inline code) and the remaining text."""
    lines: list[str] = []

    def keep(match: re.Match[str]) -> str:
        lines.extend(line.strip() for line in match[1].splitlines())
        return "\n"

    # An indented code block has four spaces and an empty line before it.  Paragraphs of lists have fewer spaces.
    for pattern in (r"^ *```[^\n]*\n(.*?)^ *```", r"(?<=\n\n)((?:(?: {4}|\t)[^\n]*\n|\n(?= {4}|\t))+)", r"`([^`]+)`"):
        markdown = re.sub(pattern, keep, markdown, flags=re.MULTILINE | re.DOTALL)
    return [line for line in lines if line], markdown


def commands(lines: list[str]) -> list[str]:
    """The commands in lines of code, without comments, with continued lines joined."""
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    plain = re.sub(r"(^|\s)#.*", "", joined, flags=re.MULTILINE)
    return [part.strip() for part in re.split(r"&&|[;|\n]", plain)]


def missing(markdown: str, folder: Path = ROOT) -> tuple[list[str], int]:
    """What a README in a folder mentions although it does not exist, and the number of its commands."""
    lines, text = split_code(markdown)
    names, count = [], 0
    targets = set(re.findall(r"^([\w-]+)(?:\s+[\w-]+)*:(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for command in commands(lines):
        scripts = re.findall(r"\bpython[\d.]*\s+((?!-)[\w./-]+\.py)\b", command)
        modules = re.findall(r"\b(?:python[\d.]*|torchrun)\s(?:.*\s)?-m\s+([\w.]+)", command)
        make = re.match(r"(?:\$ )?make((?:\s+[^\s]+)*)$", command)
        words = re.sub(r"'[^']*'", "", make[1]).split() if make else []  # options in quotes are no targets
        goals = [word for word in words if "=" not in word and not word.startswith("-")]
        names += [path for path in scripts if not (ROOT / path).is_file()]
        names += [f"-m {name}" for name in modules if not module_exists(name)]
        names += [f"make {goal}" for goal in goals if goal not in targets]
        count += len(scripts) + len(modules) + bool(make)
    names += [
        path for line in lines for path in re.findall(r"configs/[\w.-]+\.yaml", line) if not (ROOT / path).exists()
    ]
    links = re.findall(r"\]\(\s*<?([^)\s>]+)", text) + re.findall(r"(?:src|href|srcset)=\"([^\"]+)\"", text)
    headings = re.findall(r"^#+ +(.+?) *$", re.sub(r"^ *```.*?^ *```", "", markdown, flags=re.M | re.S), re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    for link in links:
        path, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        if (path and not (folder / path).exists()) or (not path and anchor not in anchors):
            names.append(link)
    return names, count


def module_exists(module: str) -> bool:
    """Whether `python -m` finds a module."""
    if module.partition(".")[0] in PACKAGES:
        path = ROOT / module.replace(".", "/")
        return path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def test_every_command_link_and_picture_in_the_readmes_exists() -> None:
    """Scripts, modules, targets of make, configs and files."""
    for readme in READMES:
        names, count = missing(readme.read_text(), readme.parent)
        assert not names, readme
        assert count > 0, f"{readme} has no command"


def test_wrong_commands_and_links_in_a_readme_are_detected() -> None:
    """One of each kind, next to a correct one; words in sentences are not commands."""
    text = """# A title, of `vit_b16`

We make things and use python script.py, see [there](#a-title-of-vit_b16), [home](https://example.org/none) and
[not](#there), ![curve](none.png) <img src="none.svg"> [setup](setup.cfg).

    make demo test   # and make coffee
    make cofee PYTHON=python3 -j2
    make demo ARGS='--epochs 3 coffee' tee

- a list

  ```sh
  $ python jobs/submit.py --config configs/vit_b16.yaml && python3 jobs/sumbit.py \\
      --config configs/none.yaml
  torchrun --nproc-per-node 2 -m vit.train
  python -m vit.trian; python -m pytest; python -m no_such_module.at_all
  ```

and `configs/nil.yaml`, or `make tea` in a line.
"""
    names, count = missing(text)
    assert sorted(names) == sorted(
        [
            *("#there", "none.png", "none.svg", "make cofee", "make tee", "jobs/sumbit.py", "configs/none.yaml"),
            *("-m vit.trian", "-m no_such_module.at_all", "configs/nil.yaml", "make tea"),
        ]
    )
    assert count == 10
