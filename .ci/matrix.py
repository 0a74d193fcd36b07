"""Installs and tests the project with the Pythons and the torches that setup.cfg claims (make matrix).

python .ci/matrix.py 3.13-2.15-oldest 3.12    only these cells: names, or how names begin or end
python .ci/matrix.py --full                   all tests that `make test` runs, not a part of them
python .ci/matrix.py --list                   the cells

A cell is a Python, a torch, and the oldest or the newest version of every other package.  Each is tested in a copy of
the working tree; .venv is not touched.  Packages are installed by uv, which keeps one copy of each file for all cells.
"""

import argparse
import contextlib
import glob
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import bounds
from set_up_checks import ROOT, end_with_parent

FOLDER = os.path.join(ROOT, "build", "matrix")  # git ignores it; make clean removes it
UV = "0.13.9"
PAIRS = (("3.11", "2.11"), ("3.11", "2.15"), ("3.12", "2.11"), ("3.13", "2.15"), ("3.14", "2.15"))
OTHERS = ("oldest", "newest")
CELLS = ["{}-{}-{}".format(*pair, others) for pair in PAIRS for others in OTHERS]
# Tests that call most of the other packages; a few minutes in all.
PART = (
    "tests/vit/config/test_help.py::test_the_help_shows_every_setting_with_its_comment_and_its_default",
    "tests/vit/data/test_decode.py::test_pixels_are_those_of_torchvision_within_bounds",
    "tests/vit/data/test_decode.py::test_crops_are_resized_as_by_pillow_bit_for_bit",
    "tests/vit/data/test_decode.py::test_the_native_and_the_ffcv_decoder_give_similar_images",
    "tests/vit/augment/test_pixel_ops.py",
    "tests/vit/augment/test_randaugment.py",
    "tests/vit/model/test_vision_transformer.py",
    "tests/vit/optim",
    "tests/vit/checkpoint/test_format.py",
    "tests/vit/checkpoint/test_read_weights.py",
    "tests/vit/distributed/test_gradients.py::test_gradients_have_the_same_bits_on_any_number_of_ranks",
    "tests/vit/training/test_compiling.py::test_all_groups_share_one_graph_but_for_the_block_that_drops_no_path",
    "tests/vit/test_export.py::test_torchvision_computes_the_same_logits",
    "tests/vit/test_export.py::test_timm_computes_the_same_logits",
    "tests/vit/test_export.py::test_safetensors_files_contain_weights_and_metadata",
    "tests/vit/test_export.py::test_onnxruntime_computes_the_same_logits",
    "tests/vit/run/test_wandb.py::test_an_offline_run_is_sent_by_the_command_that_it_names",
    "tests/jobs/test_submit.py::test_a_finished_run_prints_its_accuracy_its_folder_and_the_next_command",
    "tests/jobs/test_report.py",
    "tests/jobs/readiness/test_software.py::test_installed_versions_are_those_that_were_tested",
    "tests/data_prep/sources/test_parquet.py::test_files_of_the_hub_give_their_images_labels_and_class_names",
    "tests/data_prep/test_reproducible.py::test_the_bytes_do_not_depend_on_the_number_of_workers",
)
NEEDED = 12e9  # bytes, estimated: what the packages of a cell take that shares none with another
SHOWN = ("torch", "torchvision", "numpy", "numba")
VERSIONS = "import importlib.metadata as m, platform as p; print(p.python_version(), *map(m.version, {!r}))"


def main():
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("cells", nargs="*", help="how the names of cells begin or end, for example 3.11 or newest")
    parser.add_argument("--full", action="store_true", help="run all tests that `make test` runs")
    parser.add_argument("--tests", default="", help="run these files and folders instead of the chosen part")
    parser.add_argument("--processes", type=int, default=2, help="processes that run tests (default: 2)")
    parser.add_argument("--keep", action="store_true", help="keep the environments, and use those that were kept")
    parser.add_argument("--list", action="store_true", help="list the cells")
    options = parser.parse_args()
    cells = [cell for cell in CELLS if any(map(cell_matches(cell), options.cells or [""]))]
    unknown = [word for word in options.cells if not any(cell_matches(cell)(word) for cell in CELLS)]
    if unknown:
        sys.exit("make matrix: there is no cell {}; the cells are {}".format(unknown[0], ", ".join(CELLS)))
    if options.list:
        print("\n".join(cells))
        return 0
    end_with_parent(signal.SIGTERM)  # make may be killed
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.nice(10)
    prepare()
    rows, failed = [], []
    for cell in cells:
        start = time.monotonic()
        passed, versions, result = run(cell, options)
        minutes = f"{(time.monotonic() - start) / 60:.0f}"
        rows.append([cell, *(versions or ["–"] * (1 + len(SHOWN))), result, minutes])
        failed += [] if passed else [cell]
        print_table(rows[-1:] if len(cells) > 1 else [])
    print_table(rows, head=True)
    if failed:
        print("make matrix: failed: {}; logs: {}".format(", ".join(failed), os.path.relpath(FOLDER)), flush=True)
    return 1 if failed else 0


def cell_matches(cell):
    """Whether a word names a cell, or how its name begins or ends."""
    return lambda word: cell == word or cell.startswith(word) or cell.endswith(word)


def print_table(rows, head=False):
    """A table in Markdown, for tests/README.md."""
    columns = ["cell", "Python", *SHOWN, "tests", "minutes"]
    lines = [columns, ["---"] * len(columns), *rows] if head else rows
    for line in lines:
        print("| " + " | ".join(line) + " |", flush=True)


def prepare():
    """Installs uv."""
    uv = os.path.join(FOLDER, "uv")
    if not os.path.exists(os.path.join(uv, "ready-" + UV)):
        shutil.rmtree(uv, ignore_errors=True)
        subprocess.check_call([sys.executable, "-m", "venv", uv])
        pip = [os.path.join(uv, "bin", "python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        subprocess.check_call([*pip, "uv==" + UV])
        open(os.path.join(uv, "ready-" + UV), "w").close()


def run(cell, options):
    """Whether a cell passes, its versions, and what is to be said about it."""
    python, torch, others = cell.split("-")
    interpreter = find_python(python)
    if interpreter is None:
        return False, None, f"not run: python{python} with its headers is neither in PATH nor in pyenv"
    free = shutil.disk_usage(FOLDER).free
    if free < NEEDED:
        return False, None, f"not run: {free / 1e9:.0f} GB of disk are free, {NEEDED / 1e9:.0f} needed"
    folder = os.path.join(FOLDER, cell)
    if not options.keep:
        shutil.rmtree(folder, ignore_errors=True)
    try:
        tree = copy_tree(os.path.join(folder, "tree"))
        with open(folder + ".log", "w") as log:
            print(f"{cell}: installing", flush=True)
            environment = install(interpreter, folder, tree, pins(torch, others), log)
            if environment is None:
                return False, None, "not installed: " + last_line(folder + ".log")
            done = subprocess.run(
                [environment, "-c", VERSIONS.format(SHOWN)], stdout=subprocess.PIPE, text=True, check=True, cwd=folder
            )
            print("{}: testing with Python, {}: {}".format(cell, ", ".join(SHOWN), done.stdout.strip()), flush=True)
            passed, result = test(environment, tree, options, log)
        return passed, done.stdout.split(), result
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)


def find_python(version):
    """The path of an interpreter that has its headers, in PATH or of pyenv; None if there is none."""
    folders = os.environ.get("PATH", "").split(os.pathsep)
    pyenv = os.environ.get("PYENV_ROOT", os.path.expanduser("~/.pyenv"))
    folders += sorted(glob.glob(os.path.join(pyenv, "versions", version + ".*", "bin")), reverse=True)
    check = "import os, sysconfig; print(os.path.exists(sysconfig.get_path('include') + '/Python.h'))"
    for folder in folders:
        path = os.path.join(folder, "python" + version)
        if os.access(path, os.X_OK):
            done = subprocess.run([path, "-c", check], capture_output=True, text=True, check=False)
            if done.stdout.strip() == "True":  # not so in pyenv's scripts for versions that are not chosen
                return path
    return None


def copy_tree(folder):
    """Copies what git knows or would add, as it is in the working tree."""
    listed = subprocess.check_output(["git", "ls-files", "-z", "-c", "-o", "--exclude-standard"], cwd=ROOT, text=True)
    for name in listed.rstrip("\0").split("\0"):
        source = os.path.join(ROOT, name)
        if os.path.isfile(source):
            target = os.path.join(folder, name)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            shutil.copy2(source, target)
    return folder


def pins(torch, others):
    """The constraints of a cell."""
    lines = [f"torch=={torch}.*"]
    if others == "oldest":
        with open(bounds.OLDEST) as file:
            lines += [line.strip() for line in file if not re.match(r"#|torch==|torchvision==", line)]
    return lines


def install(interpreter, folder, tree, constraints, log):
    """The Python of a new environment that has the project and its packages; None if that failed."""
    environment, path = os.path.join(folder, "environment"), os.path.join(folder, "constraints.txt")
    python, ready = os.path.join(environment, "bin", "python"), os.path.join(folder, "ready")
    if os.path.exists(ready):  # what of C++ has changed is compiled
        build = [python, "setup.py", "--quiet", "build_ext", "--inplace"]
        return None if call(build, cwd=tree, stdout=log, stderr=log) else python
    shutil.rmtree(environment, ignore_errors=True)
    with open(path, "w") as file:
        file.write("\n".join(constraints) + "\n")
    uv = [os.path.join(FOLDER, "uv", "bin", "uv"), "pip", "install", "--python", python, "--constraint", path]
    variables = dict(os.environ, UV_CACHE_DIR=os.environ.get("UV_CACHE_DIR", os.path.join(FOLDER, "cache")))
    for command in (
        [interpreter, "-m", "venv", "--without-pip", environment],
        [*uv, "--build-constraint", path, "--editable", ".[dev]", "pip"],
    ):
        log.write("$ {}\n".format(" ".join(command)))
        log.flush()
        if call(command, cwd=tree, env=variables, stdout=log, stderr=log):
            return None
    open(ready, "w").close()
    return python


def test(python, tree, options, log):
    """Whether the tests pass, and pytest's last line."""
    chosen = options.tests.split() or (["tests"] if options.full else list(PART))
    command = [python, "-m", "pytest", "-rfEs", "-p", "no:cacheprovider", "--dist", "worksteal"]
    command += ["--numprocesses", str(options.processes)]
    log.write("$ {}\n".format(" ".join([*command, *chosen])))
    log.flush()
    hidden = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    path = os.path.dirname(python) + os.pathsep + hidden.get("PATH", "")
    code = call([*command, *chosen], cwd=tree, env=dict(hidden, PATH=path), stdout=log, stderr=log)
    with open(log.name) as file:
        failures = re.findall(r"^(?:FAILED|ERROR) .*$", file.read(), re.MULTILINE)
    print("\n".join(failures), end="\n" if failures else "", flush=True)
    return code == 0, re.sub(r"=|, \d+ warnings?| in .*", "", last_line(log.name, r"\d+ (passed|failed|error)")).strip()


def call(command, **options):
    """The exit code of a command, which may end its own processes when this one is interrupted."""
    process = subprocess.Popen(command, start_new_session=True, **options)  # Ctrl-C reaches it only from here
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        raise
    finally:
        process.kill()


def last_line(path, pattern=""):
    """The last line of a log in which a pattern is found; if there is none, the last line."""
    with open(path, errors="replace") as file:
        lines = [line.strip() for line in file if line.strip()]
    return next((line for line in reversed(lines) if re.search(pattern, line)), lines[-1] if lines else "no output")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("make matrix: interrupted; what was downloaded is kept")
