# make demo     set up, prepare real images, train a small ViT here, print its test accuracy
# make ablation the demo's model on few images, without and with augmentation, and both curves in one picture
# make test     set up, run linters, types and all tests
# make setup    the .venv alone; a second run takes seconds
# make chaos    thousands of faults on small runs: kills, damage, failing disks, power cuts; half an hour on two cores
# make cluster-chaos   every fault that the tests know, on real Slurms on this machine; needs root

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do command -v $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
DATA := data/fashion-mnist
export PYTHONPATH :=  # a foreign one shadows what the .venv holds

.PHONY: setup demo ablation test lint clean chaos cluster-chaos

setup: $(VENV)/ready

# FFCV is built from source, against the system's OpenCV and libjpeg-turbo.
$(VENV)/ready: setup.cfg setup.py pyproject.toml constraints.txt .ci/system-packages $(wildcard vit/*/*.cpp vit/*/*.h)
	@PYTHON=$(PYTHON) .ci/system-packages
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else "Python 3.11 to 3.13 is needed, not %d.%d; try make PYTHON=/path/to/python3.11" % v)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

$(DATA)/%.beton: | $(VENV)/ready
	$(BIN)/python -m data_prep.write_beton fashion-mnist --split $* --out $@ --mode raw

demo: setup $(DATA)/train.beton $(DATA)/val.beton
	$(BIN)/python jobs/submit.py --config configs/demo.yaml --nodes 1 --gpus 2
	@echo "  on a cluster    python jobs/submit.py --config configs/vit_b16.yaml --nodes 1 --gpus 4"

ablation: setup $(DATA)/train.beton $(DATA)/val.beton
	$(BIN)/python jobs/submit.py --config configs/demo_overfits.yaml --nodes 1 --gpus 2
	$(BIN)/python jobs/submit.py --config configs/demo_augmented.yaml --nodes 1 --gpus 2
	$(BIN)/python jobs/report.py runs/demo_overfits runs/demo_augmented --out ablation.png

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	@.ci/system-packages slurm
	$(BIN)/python -m pytest --numprocesses 3 --dist worksteal

chaos: setup
	nice -n 10 $(BIN)/python benchmarks/chaos.py

cluster-chaos: setup
	@.ci/system-packages slurm
	$(BIN)/python -m pytest -vv --numprocesses 3 --dist worksteal -m "campaign or not campaign" \
	  tests/cluster

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
