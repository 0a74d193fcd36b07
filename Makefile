# Targets: make help

TESTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))
PYTHON := $(or $(PYTHON),$(shell for p in python3.11 python3.12 python3.13 python3.14 python3; do \
  $$p -c '$(TESTED)' 2>/dev/null && command -v $$p && exit; done; command -v python3))
VENV := .venv
BIN := $(VENV)/bin
DATA := data/fashion-mnist
export PYTHONPATH :=  # an inherited value would shadow the packages of .venv

# TORCH=cpu: builds of torch without CUDA, from the index TORCH_INDEX; TORCH=cuda: the others; not given: as .venv has.
TORCH ?=
TORCH_INDEX ?=
ifneq ($(TORCH),$(filter $(TORCH),$(or $(shell cat $(VENV)/ready 2>/dev/null),cuda)))
  CHANGED := changed
endif

.PHONY: setup help announce-demo demo ablation about-ablation pets pets-plan tour lint test gpu chaos cluster-chaos cluster-versions matrix clean

setup: $(VENV)/ready  ## create .venv: minutes, and seconds the next time; TORCH=cpu: without CUDA
	@$(if $(filter-out setup,$(MAKECMDGOALS)),:,echo "next: source $(VENV)/bin/activate   (in each new shell, for the commands in README.md)")

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# FFCV is built from source with the system's OpenCV and libjpeg-turbo.
$(VENV)/ready: setup.cfg setup.py pyproject.toml constraints.txt .ci/system-packages \
    $(wildcard vit/*/*.cpp vit/*/*.h) $(CHANGED)
	@[ -n "$(PYTHON)" ] || { echo "make setup: Python is not installed; 3.11 to 3.14 is needed" >&2; exit 1; }
	@exec $(PYTHON) .ci/set_up.py --torch "$(TORCH)" --index "$(TORCH_INDEX)"

.PHONY: changed
changed:

$(DATA)/%.beton: | $(VENV)/ready
	$(BIN)/python -m data_prep.write_beton fashion-mnist --split $* --out $@ --mode raw

announce-demo:
	@echo "make demo: sets up .venv (3 minutes; seconds if it is there), prepares 60,000 real images (20 s) and trains a"
	@echo "small ViT on the CPUs of this machine (2 minutes).  Ctrl-C stops it at any point; make demo continues."

demo: announce-demo $(VENV)/ready $(DATA)/train.beton $(DATA)/val.beton  ## set up, prepare real images, train a small ViT here, print its test accuracy
	$(BIN)/python jobs/submit.py --config configs/demo.yaml --nodes 1 --gpus 2
	@echo "  on a cluster    $$($(BIN)/python -m vit.run.hints jobs/submit.py --config configs/vit_b16.yaml --nodes 1 --gpus 4)"
	@[ "$$VIRTUAL_ENV" = "$(CURDIR)/$(VENV)" ] || echo "  next            source $(VENV)/bin/activate   (in each new shell, for the commands in README.md)"

ablation: about-ablation setup $(DATA)/train.beton $(DATA)/val.beton  ## train the demo's model on few images, without and with augmentation, three seeds each, and plot the curves
	$(BIN)/python jobs/submit.py --config configs/demo_overfits.yaml --sweep seed=0,1,2 --nodes 1 --gpus 2
	$(BIN)/python jobs/submit.py --config configs/demo_augmented.yaml --sweep seed=0,1,2 --nodes 1 --gpus 2
	$(BIN)/python jobs/report.py runs/demo_overfits-sweep runs/demo_augmented-sweep --out runs/ablation.png
	$(BIN)/python jobs/report.py runs/demo_overfits-sweep runs/demo_augmented-sweep --out runs/ablation.html

about-ablation:
	@echo "The demo's model on 1,000 images for 200 epochs: 3 seeds without augmentation, 3 with it; 10 to 20 minutes on 2 cores."
	@echo "After Ctrl-C the same command continues. At the end: runs/ablation.html, runs/ablation.png."

# Oxford-IIIT Pet: a small ViT from random weights, cats against dogs; or INIT=FILE, a published ViT-S/16, and 37 breeds.
PETS := data/pets
INIT :=
PETS_CONFIG := $(if $(INIT),pets_finetune,pets)
NAME := $(PETS_CONFIG)
# Ranks: one GPU on a cluster or with a GPU, else one rank for each CPU core, 8 at most.  ARGS: options of jobs/submit.py,
# with another NAME for a run beside the first one.
GPUS = $(shell { command -v sbatch || nvidia-smi -L; } >/dev/null 2>&1 && echo 1 || \
  for n in 8 4 2 1; do [ $$n -le "$$(nproc)" ] && echo $$n && break; done)
ARGS :=

$(PETS)/%.beton: | $(VENV)/ready
	$(BIN)/python -m data_prep.write_beton oxford-pets --root $(PETS) --target $(word 1,$(subst -, ,$*)) \
	  --split $(word 2,$(subst -, ,$*)) --out $@

pets-plan:
	@[ -z "$(INIT)" ] || [ -e "$(patsubst ~/%,$(HOME)/%,$(INIT))" ] || [ -e runs/$(NAME)/config.yaml ] || { \
	  echo "make pets: INIT=$(INIT) does not exist; configs/README.md, Cats and dogs, says where to get weights" >&2; exit 1; }
	@test -e runs/$(NAME)/attention.png || printf '%s\n' \
	  "make pets downloads 800 MB of pictures, writes data sets (3 GB in $(PETS) in all), then trains runs/$(NAME):" \
	  "minutes on a GPU; on 2 CPU cores an estimated $(if $(INIT),100,25) minutes. After Ctrl-C, the same command continues."

pets: pets-plan setup $(foreach target,species breed,$(foreach split,train val,$(PETS)/$(target)-$(split).beton))  ## train on pictures of cats and dogs, or fine-tune with INIT=FILE, and draw attention maps
	$(BIN)/python jobs/submit.py --config configs/$(PETS_CONFIG).yaml --name $(NAME) $(if $(INIT),--init_from "$(INIT)") \
	  --nodes 1 --gpus $(GPUS) $(ARGS)
	@if ! $(BIN)/python jobs/status.py runs/$(NAME) --json | grep -q '"state": "finished"'; then \
	  echo "when this run is finished, run the same command again: it draws the attention maps"; \
	else \
	  test runs/$(NAME)/attention.png -nt runs/$(NAME)/ledger.jsonl || $(BIN)/python -m vit.predict runs/$(NAME) \
	    --samples 8 --top 2 --sheet runs/$(NAME)/attention.png || exit; \
	  echo "  attention maps of 8 test pictures   runs/$(NAME)/attention.png"; \
	  echo "  and of your own picture             $$($(BIN)/python -m vit.run.hints vit.predict \
	    runs/$(NAME) my-cat.jpg --attention runs/$(NAME)/maps)"; \
	fi

# nbconvert's page shows code that a cell prints as Markdown in the font of the text.
CODE_FONT := import pathlib, sys; page = pathlib.Path(sys.argv[1]); style = ".jp-RenderedMarkdown pre { font-family: monospace }"; \
  page.write_text(page.read_text("utf-8").replace("</head>", f"<style>{style}</style></head>", 1), "utf-8")

tour: setup  ## run every cell of the notebook that explains the Vision Transformer, and write it as a page
	@echo "running all cells of vit/model/tour.ipynb: about three minutes on two cores"
	@$(BIN)/jupyter-nbconvert --log-level ERROR --KernelManager.transport_encryption auto --execute --to html --output-dir runs/tour vit/model/tour.ipynb
	@$(BIN)/python -c '$(CODE_FONT)' runs/tour/tour.html
	@echo "open     runs/tour/tour.html"
	@echo "change   $(BIN)/pip install jupyterlab && $(BIN)/jupyter lab vit/model/tour.ipynb"

lint: setup  ## run linter, formatter check and type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint  ## set up, run lint and all tests
	@.ci/system-packages slurm
	@.ci/system-packages chromium
	$(BIN)/python -m pytest --numprocesses 3 --dist worksteal

gpu: setup  ## check everything that matters on a GPU: right pixels and bits, speed, ranks, faults; half an hour
	$(BIN)/python benchmarks/gpu.py

chaos: setup  ## inject thousands of faults into small runs: kills, damage, failing disks, power cuts; an hour on two cores
	nice -n 10 $(BIN)/python benchmarks/chaos.py

cluster-chaos: setup  ## inject every fault that the tests know into runs on a real Slurm on this machine; requires root
	@.ci/system-packages slurm
	$(BIN)/python -m pytest -vv --numprocesses 3 --dist worksteal -m "campaign or not campaign" \
	  tests/cluster

cluster-versions: setup  ## run the tests on a real Slurm with Slurm 22.05 to 26.05, each in a chroot; requires root, Debian or Ubuntu
	@.ci/system-packages debootstrap
	$(BIN)/python -m tests.slurm_versions

matrix:  ## test each Python and torch that setup.cfg claims, with the oldest and newest packages; CELLS=3.13: some
	@$(PYTHON) .ci/matrix.py $(CELLS)

clean:  ## remove .venv, build files and caches
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
