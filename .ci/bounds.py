"""The versions that setup.cfg claims; prints the oldest ones, as pip's constraints.

python .ci/bounds.py > .ci/constraints-oldest.txt

Needs only Python itself.  An older Python can read it, too.
"""

import configparser
import os
import re

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OLDEST = os.path.join(ROOT, ".ci", "constraints-oldest.txt")
EXTRAS = ("export", "parquet", "dev")  # what `make setup` installs; `bench` has exact versions


def setup_cfg():
    """The options of setup.cfg."""
    setup = configparser.ConfigParser()
    setup.read(os.path.join(ROOT, "setup.cfg"))
    return setup


def pythons(setup):
    """The first and the last Python that is claimed, (3, 11) and (3, 13), of the bounds `>=3.11,<3.14`."""
    first, below = re.match(r">=3\.(\d+),<3\.(\d+)$", setup["options"]["python_requires"]).groups()
    return (3, int(first)), (3, int(below) - 1)


def requirements(setup):
    """(name, bounds) of each package that this project requires, and of those in its extras."""
    texts = [setup["options"]["install_requires"], *(setup["options.extras_require"][extra] for extra in EXTRAS)]
    return [line for text in texts for line in re.findall(r"^([\w-]+)(?![\w\[-])([^#\s]*)", text, re.MULTILINE)]


def oldest(setup):
    """`numpy==2.3.2` for each package that has a lower bound."""
    found = []
    for name, bounds in requirements(setup):
        lowest = re.search(r"[>=]=([\d.]+)", bounds)
        if lowest:
            found.append(f"{name}=={lowest.group(1)}")
    return found


def text(setup):
    """The content of constraints-oldest.txt."""
    head = "# The lower bounds of setup.cfg (python .ci/bounds.py > this file), which make matrix tests.\n"
    return head + "".join(line + "\n" for line in sorted(oldest(setup), key=str.lower))


if __name__ == "__main__":
    print(text(setup_cfg()), end="")
