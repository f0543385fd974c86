# make demo    set up .venv with what the program needs, and erase the ship from the bundled model
# make test    add what developers need, and run every check; SHUFFLE=1 (or another number) runs the tests in another order
# make stress  run the tests ten times, half of them shuffled and on a busy machine; RUNS=4 runs them four times
# make compat  older versions of diffusers and transformers, under which tests load what is exported (part of make test)
# make docs    build the documentation into build/docs
# make train   train the bundled model again (most of a day)
#
# Another interpreter or torch build:
#   make demo PYTHON=python3.12 TORCH="torch --index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= python3
TORCH  ?= torch==2.13.0
VENV   ?= .venv
RUNS   ?= 10

# the second pass of emoji_scorer.yaml, on other images
FURTHER := --model.new_image_tower false --model.seed 2025 --data.images 20000 --data.manners 0.57 --data.seed 2027 \
	--trainer.max_steps 5000 --trainer.callbacks.init_args.dirpath checkpoints/training/emoji_scorer_further

BIN   := $(VENV)/bin
READY := $(VENV)/.ready
CHECKS := $(VENV)/.checks
PIP   := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# what does not wait for each other is made side by side: older packages come in while types are checked
MAKEFLAGS += --jobs=2

LISTS := $(wildcard tests/compat/*.txt)
OLDER := $(LISTS:tests/compat/%.txt=$(VENV)/compat/%/.ready)

.PHONY: demo test stress lint compat docs train clean

demo: $(READY)
	$(BIN)/python erase.py fit --config configs/emoji/erase_ship.yaml

# two processes with a thread each: half the time of one with two
test: lint docs compat $(VENV)/studio/.ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile \
		$(if $(SHUFFLE),--random-order --random-order-seed=$(SHUFFLE))

stress: $(CHECKS) compat $(VENV)/studio/.ready
	PYTHON=$(BIN)/python tests/stress.sh $(RUNS)

lint: $(CHECKS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# each beside the packages of $(VENV), whose torch it uses
compat: $(OLDER)

define BESIDE
	$(BIN)/python -m venv --clear --without-pip $(@D)
	$(BIN)/python -c "import sysconfig; print(f'import site; site.addsitedir({sysconfig.get_path(\"purelib\")!r})')" \
	  > $$($(@D)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/parent.pth
	$(BIN)/python -m pip --python $(@D)/bin/python install --quiet --no-warn-conflicts --requirement $<
	touch $@
endef

$(VENV)/compat/%/.ready: tests/compat/%.txt $(CHECKS)
	$(BESIDE)

# what the page of `studio` needs, with an older pillow
$(VENV)/studio/.ready: tests/studio/packages.txt $(CHECKS)
	$(BESIDE)

# a link that leads nowhere is an error; no network is needed
docs: $(CHECKS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

train: $(READY)
	$(BIN)/python train.py fit --config configs/train/emoji_vae.yaml
	$(BIN)/python train.py fit --config configs/train/emoji_clip.yaml
	$(BIN)/python train.py fit --config configs/train/emoji_scorer.yaml --model.overwrite true
	$(BIN)/python train.py fit --config configs/train/emoji_scorer.yaml --model.overwrite true $(FURTHER)
	$(BIN)/python train.py fit --config configs/train/emoji_unet.yaml
	$(BIN)/python train.py fit --config configs/train/emoji_judge.yaml

# torch first, so that the build that was asked for satisfies the package's own requirement
$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	@echo "Installing torch and the other packages into $(VENV), which takes some minutes ..."
	$(PIP) $(TORCH)
	$(PIP) --editable .
	touch $(READY)

$(CHECKS): $(READY)
	@echo "Installing what the checks need into $(VENV) ..."
	$(PIP) --editable ".[dev,docs]"
	touch $(CHECKS)

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
