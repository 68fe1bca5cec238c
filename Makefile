# Every target sets up .venv by itself when it is missing or older than the files that define it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

.PHONY: help demo test check format bench docs claims clean

help:
	@echo "make demo    a study of five techniques on the digits data (under a minute on two cores) and its report"
	@echo "make test    checks, tests and doctests"
	@echo "make check   format, lint, types and the floors of the house"
	@echo "make bench   the measurements behind the documented figures"
	@echo "make docs    the figures and tables of docs/ from the code"
	@echo "make claims  the quick form of every claim and the table in docs/claims (ten minutes on two cores)"

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "homeostat needs Python 3.11 or newer; set PYTHON=python3.12 (or similar)."; exit 1; }
	@echo "Setting up $(VENV) (a minute or two; about 2 GB)..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip setuptools wheel -c constraints.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]' -c constraints.txt
	@touch $(READY)

demo: $(READY)
	$(BIN)/homeostat study digits --out studies/demo

test: check
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive \
		$(BIN)/python -m pytest -q --numprocesses logical --maxprocesses 4 --dist worksteal

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,bench]' -c constraints.txt
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/kernels.py
	$(BIN)/python benchmarks/gpu.py
	$(BIN)/python benchmarks/randomness.py
	$(BIN)/python benchmarks/initialization.py
	$(BIN)/python benchmarks/augmentation.py
	$(BIN)/python benchmarks/corruptions.py
	$(BIN)/python benchmarks/adaptation.py
	$(BIN)/python benchmarks/throughput.py
	$(BIN)/python benchmarks/scaling.py
	$(BIN)/python benchmarks/lanes.py
	$(BIN)/python benchmarks/thousand.py
	$(BIN)/python benchmarks/fewer_trials.py
	$(BIN)/python benchmarks/crashes.py
	$(BIN)/python benchmarks/intervals.py
	$(BIN)/python benchmarks/sequential.py
	$(BIN)/python benchmarks/watch.py
	$(BIN)/python benchmarks/doctor_thresholds.py
	$(BIN)/python benchmarks/doctor_augmentation.py
	$(BIN)/python benchmarks/doctor_faults.py
	$(BIN)/python benchmarks/doctor.py

docs: $(READY)
	$(BIN)/python docs/reference.py
	$(BIN)/python benchmarks/picture.py

claims: $(READY)
	$(BIN)/homeostat claims run --all --quick --out build/claims
	$(BIN)/python docs/verdicts.py build/claims

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
