# Everything is made from a bare checkout: each target creates .venv and installs what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help quickstart books test lint bench soak studies spectrum clean

help:
	@echo "make quickstart  text to trained model on this machine, about five minutes (ARGS='--corpus DIR' for your text)"
	@echo "make books       the same on the books in \$$TRINE_DATA/general, one held out"
	@echo "make test        all tests          make lint   ruff and pyright"
	@echo "make bench       speed tables       make soak   the long fault proofs"
	@echo "make studies     the claims of recipes/studies put to the test, a night on two cores; again goes on"
	@echo "                 (runs kept in docs/evidence/runs count as finished)"
	@echo "make spectrum    full, Spectrum, LoRA and controls compared, a night on two cores in the background; again goes on"

quickstart: $(VENV)/.ready
	$(BIN)/trine run recipes/quickstart.yaml $(ARGS)

books: $(VENV)/.ready
	$(BIN)/trine run recipes/books.yaml $(ARGS)

test: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

lint: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: $(VENV)/.ready-dev
	@failed=; for one in startup.py loader.py tokenizer.py corpus.py decode.py "train_step.py $(ARGS)"; do \
		echo "$(BIN)/python bench/$$one"; $(BIN)/python bench/$$one || failed="$$failed $${one%% *}"; \
	done; [ -z "$$failed" ] || { echo "goal missed or failed:$$failed"; exit 1; }

soak: $(VENV)/.ready-dev
	$(BIN)/python bench/faults.py $(ARGS)

studies: $(VENV)/.ready
	$(BIN)/trine study $(addprefix recipes/studies/,balancing.yaml muon.yaml rsdb.yaml architecture.yaml) \
		--evidence docs/evidence.md $(ARGS)

spectrum: $(VENV)/.ready
	$(BIN)/python -m pip install -q -e '.[lora]'
	$(BIN)/trine spectrum study recipes/studies/spectrum.yaml --evidence docs/spectrum-study.md --background $(ARGS)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "trine needs Python 3.11 or newer: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.ready: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -e '.[train,data,report]'
	@touch $@

$(VENV)/.ready-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -e '.[all,oracle,dev]'
	@touch $(VENV)/.ready $@

clean:
	rm -rf $(VENV) runs .pytest_cache .ruff_cache
