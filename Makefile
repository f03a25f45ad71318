# `make demo` runs everything on a small model, `make test` checks everything. Both install first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-all docs wheel lowest parity trackers export-matrix speed bench failure-loop gold-master chaos soak fuzz mutants lint clean

demo: $(STAMP)
	$(BIN)/forty2 demo

# In two processes of one thread each: BLAS threads of two processes on two cores wait for each other.
test: lint
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

test-all: lint
	$(BIN)/python -m pytest

parity: $(STAMP)
	$(BIN)/python -m pip install -q --group parity
	$(BIN)/python -m pytest tests/benchmark/test_parity.py tests/training/test_trl_parity.py tests/export/test_peft_parity.py tests/inference/test_embedding_parity.py

trackers: $(STAMP)
	$(BIN)/python -m pip install -q --group trackers
	$(BIN)/python -m pytest tests/runs/test_trackers.py

export-matrix: $(STAMP)
	$(BIN)/python tests/export_matrix.py

speed bench: $(STAMP)
	$(BIN)/forty2 speed

docs: $(STAMP)
	$(BIN)/python -m pip install -q --group docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

wheel: $(STAMP)
	.ci/check_wheel $(BIN)/python

lowest:
	.ci/check_lowest $(PYTHON)

failure-loop: $(STAMP)
	$(BIN)/python benchmarks/failure_loop/run.py --out failures/failure-loop

gold-master: $(STAMP)
	$(BIN)/python benchmarks/gold_master/run.py search --out adapters/gold-master
	$(BIN)/python benchmarks/gold_master/run.py claim --out adapters/gold-master

chaos: $(STAMP)
	$(BIN)/python tests/chaos.py
	$(BIN)/python tests/chaos_loop.py

soak: $(STAMP)
	$(BIN)/python tests/soak.py

fuzz: $(STAMP)
	$(BIN)/python -m pip install -q --group fuzz
	$(BIN)/python tests/fuzz.py --seconds 330

mutants: $(STAMP)
	$(BIN)/python -m pip install -q --group mutants
	$(BIN)/python tests/mutants.py $(MODULES)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(STAMP): pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'forty2 needs Python 3.11 or newer')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -e . --group dev
	@touch $@

clean:
	rm -rf $(VENV) site dist build *.egg-info .mypy_cache .ruff_cache .pytest_cache
