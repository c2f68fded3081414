# Two commands: `make tune` and `make test`. Each makes .venv when it has to.
CONFIG ?= conf/quickstart.yaml
PYTHON ?= python3.11
BIN := .venv/bin

# Spark takes its Python from the environment, and another Spark must not get in the way.
export PYSPARK_PYTHON := $(abspath $(BIN)/python)
export PYSPARK_DRIVER_PYTHON := $(PYSPARK_PYTHON)
unexport SPARK_HOME

.PHONY: setup tune test lint format bench-search bench-data test-large clean

setup: .venv/installed  ## install everything into .venv

tune: setup java  ## CONFIG=conf/...: run a study
	$(BIN)/spark-submit jobs/tune.py --config $(CONFIG)

test: setup java  ## unit, contract and integration tests
	$(BIN)/python -m pytest

lint: setup  ## style, types, imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench-search: setup build/peers/installed  ## the methods and their peers on real curves; hours. QUICK=1: minutes
	build/peers/bin/python tests/benchmarks/bench_search.py --only DEHB --only "Syne Tune" --no-page $(if $(QUICK),--quick --results build/quick_search.jsonl)
	$(BIN)/python tests/benchmarks/bench_search.py $(if $(QUICK),--quick --results build/quick_search.jsonl --output build/search)
	$(BIN)/python tests/benchmarks/bench_driver.py $(if $(QUICK),--trials 500 --slots 50 --output build/driver.md)

bench-data: setup  ## reading, beside pyarrow, Petastorm's and torch's loaders
	$(BIN)/python -W ignore tests/benchmarks/bench_data.py

test-large: setup  ## 20 GB of decoded rows train in 1.5 GB; a quarter of an hour, and 20 GB of disk
	$(BIN)/python -m pytest -s tests/large

clean:  ## remove what studies and tests have left, but not .venv
	rm -rf data studies build dist .pytest_cache .mypy_cache .ruff_cache

.venv/installed: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed: install it, or call make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv || { rm -rf .venv; echo "Python's venv module is needed: apt-get install python3.11-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[petastorm,s3,examples,optuna,replay,dev]'
	@touch $@

build/peers/installed: pyproject.toml  # peers whose packages do not go together with petastorm's
	$(PYTHON) -m venv build/peers
	build/peers/bin/python -m pip install --quiet dehb syne-tune huggingface_hub s3fs --editable '.[replay,optuna]'
	@touch $@

.PHONY: java
java:
	@version=$$("$${JAVA_HOME:+$$JAVA_HOME/bin/}java" -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p'); \
	case "$$version" in 17|21) ;; *) \
	echo "Java 17 or 21 is needed, found $${version:-none}: install it (apt-get install openjdk-17-jre-headless, brew install openjdk@17) or point JAVA_HOME at it" >&2; exit 1;; esac
