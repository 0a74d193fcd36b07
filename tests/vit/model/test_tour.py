"""The notebook that explains the Vision Transformer: it runs, and what is committed is what it shows."""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image
from traitlets.config import Config

from data_prep.sources.fashion_mnist import PACKAGED_FASHION_MNIST
from tests.helpers.paths import CHECKOUT, ROOT

NOTEBOOK = ROOT / "vit/model/tour.ipynb"
QUICK = """
TRAINING_IMAGES, EPOCHS, TEST_IMAGES = 1280, 1, 500
FEW_IMAGES, MANY_EPOCHS = 256, 2
PET_IMAGES, PET_EPOCHS = 12, 1
"""


@pytest.fixture
def notebook() -> NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]


def tagged(notebook: NotebookNode, tag: str) -> NotebookNode:
    (cell,) = [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]
    return cell


def run_cells(notebook: NotebookNode, folder: Path) -> str:
    """Runs all cells in a kernel that starts in a folder; returns what they printed.  Raises CellExecutionError."""
    config = Config({"KernelManager": {"transport_encryption": "auto"}})
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=500, config=config, resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output.text for output in outputs if output.get("name") == "stderr"]
    return "".join(output.text for output in outputs if output.get("name") == "stdout")


def write_pets(folder: Path) -> None:
    """Two data sets of cats and dogs, as `make pets` writes them."""
    rng = np.random.default_rng(0)
    for name in ("Cat", "Dog"):
        (folder / "images" / name).mkdir(parents=True)
        for i in range(6):
            pixels = rng.integers(0, 256, (80, 100, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "images" / name / f"{i}.jpg")
    command = [sys.executable, "-m", "data_prep.write_beton", "imagefolder", str(folder / "images"), "--out"]
    for split in ("train", "val"):
        subprocess.run(
            [*command, str(folder / f"species-{split}.beton")], cwd=CHECKOUT, check=True, capture_output=True
        )


@pytest.mark.skipif(not PACKAGED_FASHION_MNIST.exists(), reason="needs Debian's dataset-fashion-mnist")
def test_every_cell_runs(notebook: NotebookNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On few pictures, with the cells for cats and dogs; the cells compare the model with what they compute by hand."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    write_pets(tmp_path)
    tagged(notebook, "parameters").source += f"{QUICK}PETS = Path({str(tmp_path)!r})"
    printed = run_cells(notebook, CHECKOUT)
    assert "the same scores, to the last bit" in printed
    assert "of 500 test pictures are right" in printed
    assert "of 12 new pictures are right" in printed


def test_opened_alone_the_notebook_clones_the_project(notebook: NotebookNode, tmp_path: Path) -> None:
    """As on Colab, where only the notebook's file is there."""
    setup = tagged(notebook, "setup")
    repository = tmp_path / "repository"
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(repository)], check=True)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    setup.source = setup.source.replace('REPOSITORY = ""', f'REPOSITORY = "file://{repository}"')
    setup.source += "\nimport vit.config.schema\nprint(vit.config.schema.__file__)"
    notebook.cells = [setup]
    assert run_cells(notebook, folder).strip() == str(folder / "vit-slurm/vit/config/schema.py")


def test_opened_alone_the_notebook_says_what_it_needs(notebook: NotebookNode, tmp_path: Path) -> None:
    """Without the address of the project it cannot clone it."""
    code = tagged(notebook, "setup").source
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert "set REPOSITORY above to the project's address" in found.stderr.splitlines()[-1]


def test_the_committed_notebook_was_run_from_top_to_bottom(notebook: NotebookNode) -> None:
    """A reader on the web sees all outputs, and no error; they are small."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"stream", "display_data"}
    pictures = [output for output in outputs if "image/jpeg" in output.get("data", {})]
    assert len(pictures) >= 16
    assert NOTEBOOK.stat().st_size < 1_000_000


def test_the_sources_that_the_committed_notebook_shows_are_those_of_the_project(notebook: NotebookNode) -> None:
    """Run the notebook again after a change of the model: jupyter nbconvert --execute --inplace."""
    model = (NOTEBOOK.parent / "vision_transformer.py").read_text()
    shown = [
        output.data["text/markdown"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "text/markdown" in output.get("data", {})
    ]
    parts = [part for text in shown for part in re.split(r"\n{3,}", text.partition("python\n")[2].removesuffix("```"))]
    assert len(parts) >= 5
    for part in parts:
        assert part.strip() in model


def test_the_links_of_the_notebook_lead_somewhere(notebook: NotebookNode) -> None:
    """To its own headings, and to files of the project."""
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    headings = {heading.replace(" ", "-") for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("https://")]
    assert len(links) >= 12
    for link in links:
        file, _, heading = link.partition("#")
        assert heading in headings if not file else (NOTEBOOK.parent / file).exists()
