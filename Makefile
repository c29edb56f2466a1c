# Everything runs in .venv, which the first command makes; pip does the installing.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
export OMP_NUM_THREADS ?= 1
.DEFAULT_GOAL := help
.PHONY: help book test lint fast chapter bench html pages pdf store robust bite mutate clean

help:  ## Show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /make \1\t/' | expand -t 14

$(READY): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "No $(PYTHON) found. Install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3.12 ..."; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"normcore needs Python 3.11 or newer, {sys.executable} is {v[0]}.{v[1]}; name another: make PYTHON=python3.12 ...")'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[book,test]"
	@touch $@

SOURCE := _build/src
# Kernels forked from a process that has torch already: nine seconds less of a processor for every chapter.
WARM    = JUPYTER_DEFAULT_PROVISIONER_NAME=normcore-warm
RENDER  = cd $(SOURCE) && ../../$(BIN)/jupyter-book build . --path-output ../.. -W -n --keep-going -q
NBVAL   = --nbval --nbval-current-env --nbval-sanitize-with=tests/nbval.cfg \
          --nbval-kernel-startup-timeout=600 --nbval-cell-timeout=$${NORMCORE_CELL_TIMEOUT:-2000000}
# Two at a time: the longest first, so that none is left to run alone.
LONGEST = $(foreach n,08 19 13 17 12 11 20 21 10,$(wildcard book/$(n)_*.ipynb))
CHAPTERS = $(LONGEST) $(filter-out $(LONGEST),$(sort $(wildcard book/*.ipynb)))

book: $(READY)  ## Execute every chapter (profile NORMCORE_PROFILE, default ci), render the book, print the scoreboard
	@rm -rf $(SOURCE) && mkdir -p $(SOURCE) && cp -R book _config.yml _toc.yml $(SOURCE)/
	@$(WARM) $(BIN)/python -m normcore.bookkit.chapters execute $(SOURCE) $(basename $(notdir $(CHAPTERS))); told=$$?; \
	($(RENDER)) && $(BIN)/python -m normcore.bookkit.scoreboard $(SOURCE) && \
	echo "Read it: $(CURDIR)/_build/html/index.html" && exit $$told

html: $(READY)  ## Render the stored outputs only (seconds)
	@rm -rf $(SOURCE) _build/html _build/.doctrees && mkdir -p $(SOURCE) && cp -R book _config.yml _toc.yml $(SOURCE)/
	$(RENDER)
	@echo "Read it: $(CURDIR)/_build/html/index.html"

pages: html  ## Open every rendered page in headless Chromium: faults, and a contact sheet
	$(BIN)/python tests/pages.py _build/html

test: lint  ## Lint, types, unit and property tests, doctests, and every chapter against its stored outputs
	$(BIN)/python -m pytest -q -n 2
	$(WARM) $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -p no:cacheprovider $(NBVAL) --override-ini addopts= $(CHAPTERS)

lint: $(READY)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fast: $(READY)  ## Unit tests of the core, in under half a minute
	$(BIN)/python -m pytest -q -n 2 -m "not slow" tests/test_*.py tests/equivalence tests/catapult tests/norm_dynamics \
	  --ignore tests/test_book.py --deselect tests/equivalence/test_optimizer_distributed.py

chapter: $(READY)  ## Execute one chapter and store its outputs: make chapter NAME=11
	$(BIN)/python -m normcore.bookkit.chapters store $(NAME)

bench: $(READY)  ## Ratios of the core, the training loop and the curvature tools against others
	for name in core training curvature; do $(BIN)/python benchmarks/$$name.py; done

pdf: html  ## The whole book as one PDF, printed by headless Chromium
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[pdf]"
	$(BIN)/python tests/pdf.py _build/html

store: $(READY)  ## Execute every chapter and store its outputs in canonical form
	$(WARM) $(BIN)/python -m normcore.bookkit.chapters store $(basename $(notdir $(CHAPTERS)))

robust: $(READY)  ## Every chapter under eight perturbations; writes book/robustness.json (an hour; resumes)
	$(BIN)/python -m normcore.bookkit.robust

bite: $(READY)  ## Plant faults one at a time and print which test catches each
	$(BIN)/python tests/bite.py

mutate: $(READY)  ## Change the core in 300 drawn places, one at a time: which tests notice? (an hour; resumes)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[test,mutate]"
	$(BIN)/python tests/mutate.py

clean:  ## Remove what the other targets made, but for .venv
	rm -rf _build .pytest_cache .mypy_cache .ruff_cache .hypothesis
