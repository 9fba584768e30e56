# `make demo` and `make test` install everything they need into .venv; nothing else has to be there but Python >= 3.11.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install demo test lint types tests figures benchmark checkpoints clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "specdiag needs Python >= 3.11; set PYTHON=..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $(STAMP)

demo: install
	@$(BIN)/specdiag spectrum sample_checkpoints/digits-standard.pt sample_checkpoints/digits-adversarial.pt --out demo-results --overwrite
	@echo
	@echo "Figure: demo-results/spectrum.svg. Results: demo-results/*.h5 (specdiag show demo-results/digits-standard.h5)."

test: install lint types tests

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

tests: install
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest

DIGITS := $(addprefix sample_checkpoints/digits-,standard.pt adversarial.pt dd-snr.pt global-snr.pt)
DRAW = --out docs/.work --quiet --overwrite --figure docs/images

figures: install
	@mkdir -p docs/images
	$(BIN)/specdiag spectrum sample_checkpoints/digits-standard.pt sample_checkpoints/digits-adversarial.pt $(DRAW)/spectrum.svg
	$(BIN)/specdiag alignment $(DIGITS) --attack pgd-l2 --eps 1 $(DRAW)/alignment.svg
	$(BIN)/specdiag robustness $(DIGITS) --attack pgd-l2 --eps-sweep 0.25,0.5,0.75,1,1.25,1.5,2 --samples 397 $(DRAW)/robustness.svg
	$(BIN)/specdiag linearity $(DIGITS) --attack pgd-l2 --eps 1 $(DRAW)/linearity.svg
	@rm -rf docs/.work

benchmark: install
	$(BIN)/python benchmarks/spectrum.py

checkpoints: install
	$(BIN)/python sample_checkpoints/make.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache demo-results specdiag-results
