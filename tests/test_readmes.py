"""Every command, link, picture and config that a README names is there."""

import importlib.util
import re
from pathlib import Path

from tests.helpers.paths import ROOT

READMES = sorted(
    path for path in ROOT.rglob("README.md") if not any(p.startswith(".") for p in path.relative_to(ROOT).parts)
)
PACKAGES = ("vit", "jobs", "data_prep", "tests", "benchmarks")


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


def missing(markdown: str, folder: Path = ROOT) -> tuple[list[str], int]:
    """What a README in a folder names and is not there, and how many commands it has."""
    lines, text = code(markdown)
    wrong, count = [], 0
    targets = set(re.findall(r"^([\w-]+)(?:\s+[\w-]+)*:(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for command in commands(lines):
        scripts = re.findall(r"\bpython[\d.]*\s+((?!-)[\w./-]+\.py)\b", command)
        modules = re.findall(r"\b(?:python[\d.]*|torchrun)\s(?:.*\s)?-m\s+([\w.]+)", command)
        made = re.match(r"(?:\$ )?make((?:\s+[^\s]+)*)$", command)
        goals = [word for word in made[1].split() if "=" not in word and not word.startswith("-")] if made else []
        wrong += [path for path in scripts if not (ROOT / path).is_file()]
        wrong += [f"-m {name}" for name in modules if not installed(name)]
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
        if (path and not (folder / path).exists()) or (not path and anchor not in anchors):
            wrong.append(link)
    return wrong, count


def installed(module: str) -> bool:
    """Whether `python -m` finds a module: ours are files here, others are looked for."""
    if module.partition(".")[0] in PACKAGES:
        path = ROOT / module.replace(".", "/")
        return path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def test_every_command_link_and_picture_of_the_readmes_is_there() -> None:
    """Scripts, modules, make's targets, configs and files: whoever copies a line finds what it names."""
    for readme in READMES:
        wrong, count = missing(readme.read_text(), readme.parent)
        assert not wrong, readme
        assert count > 0, f"{readme} has no command"


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
