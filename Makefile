# The two main commands are `make tune` and `make test`. Each creates .venv if it is missing.
CONFIG ?= conf/quickstart.yaml
PYTHON ?= python3.11
BIN := .venv/bin

# Spark takes its Python from the environment, and another Spark must not get in the way.
export PYSPARK_PYTHON := $(abspath $(BIN)/python)
export PYSPARK_DRIVER_PYTHON := $(PYSPARK_PYTHON)
unexport SPARK_HOME
# Without it, each of the hundreds of processes of the tests would compile the package again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup tune test test-fast test-slow test-faults test-hosts test-first-studies fuzz lint format bench-search bench-launch bench-study bench-load bench-data bench-predict bench-checkpoint bench-tabular bench-serve bench-usage bench-hypergradient bench-install test-modern test-spark35 test-dbr test-large screenshots gpu-check audit test-airflow test-pipelines test-image docs linkcheck dist test-dist picture clean

setup: .venv/installed  ## install everything into .venv

# As spark_hpo.backend.spark.quiet does for `spark-hpo run`.
tune: export SPARK_SUBMIT_OPTS ?= "-Dlog4j2.configurationFile=file:$(CURDIR)/spark_hpo/backend/spark/log4j2.properties"
tune: setup java $(if $(filter %/adult.yaml,$(CONFIG)),data/adult.csv)  ## CONFIG=conf/...: run a study
	$(BIN)/spark-submit jobs/tune.py --config $(CONFIG)

# UCI's file has no header, and a space after each comma.
ADULT_URL := https://archive.ics.uci.edu/ml/machine-learning-databases/adult/adult.data
ADULT_COLUMNS := age,workclass,fnlwgt,education,education-num,marital-status,occupation,relationship,race,sex,capital-gain,capital-loss,hours-per-week,native-country,income-per-year

data/adult.csv:  ## the Adult census table of UCI
	mkdir -p data
	curl -fsSL --output $@.part $(ADULT_URL)
	{ echo $(ADULT_COLUMNS); sed -e 's/, /,/g' -e '/^$$/d' $@.part; } > $@
	rm $@.part

# Tests run in one process per core, at most WORKERS; each may start a Spark of its own, with some 3 GB.
# A file's tests stay in one process, because they share fixtures.
WORKERS ?= 4
PYTEST := $(BIN)/python -m pytest --numprocesses logical --maxprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

build/spark-classes.jsa: .venv/installed tests/support/class_archive.py
	$(BIN)/python -m tests.support.class_archive $@
	@touch $@

test: setup java build/spark-classes.jsa  ## all tests except for the slow ones
	$(PYTEST) -m "not slow"

test-fast: setup  ## the tests that need neither a JVM nor a second each: for the inner loop
	$(PYTEST) -m "not slow and not medium"

test-slow: setup java build/spark-classes.jsa  ## the other tests: whole studies with several processes and JVMs
	$(PYTEST) -m "slow"

test-faults: setup java  ## every fault, injected into studies on a real Spark, and its costs; forty minutes
	$(BIN)/python -m pytest tests/faults --faults-page docs/benchmarks/faults.md

test-hosts: setup java  ## studies on three hosts (network namespaces): ports, clocks, lost hosts; three minutes; root
	$(BIN)/python -m pytest tests/hosts

test-first-studies: setup java  ## prepare, init and run on real tables, beside scikit-learn; seven minutes
	$(BIN)/python -m pytest -s tests/first_studies

fuzz: setup  ## the property tests with new examples, and twenty times as many; a quarter of an hour
	HYPOTHESIS_PROFILE=fuzz $(BIN)/python -m pytest --timeout 1800 tests/unit tests/contract/test_schedulers.py

lint: setup  ## style, types, imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench-search: setup build/peers/installed  ## the methods and their peers on real curves; days. QUICK=1: minutes
	$(if $(QUICK),,$(BIN)/python -m tests.benchmarks.replay.train_curves)
	build/peers/bin/python -m tests.benchmarks.bench_search --only DEHB --only SMAC3 --only NePS --only "Syne Tune" --no-page $(if $(QUICK),--quick --results build/quick_search.jsonl)
	$(BIN)/python -m tests.benchmarks.bench_search $(if $(QUICK),--quick --results build/quick_search.jsonl --output build/search)
	$(BIN)/python -m tests.benchmarks.bench_driver $(if $(QUICK),--trials 500 --slots 50 --output build/driver.md)

bench-launch: setup java  ## starting a trial, beside SparkTrials and TorchDistributor; six minutes
	$(BIN)/python -m tests.benchmarks.bench_launch $(if $(QUICK),--sessions 1 --output build/launch.md)

bench-study: setup java  ## how busy slots are, and where the driver's time goes; eight minutes
	$(BIN)/python -m tests.benchmarks.bench_study $(if $(QUICK),--seconds 60 --trials 100 --output build/study.md)

bench-load: setup  ## 10,000 trials in one study: journal, memory, resuming, MLflow, S3; half an hour
	$(BIN)/python -m tests.benchmarks.bench_load $(if $(QUICK),--trials 1000 --output build/load.md)

bench-data: setup  ## reading, beside pyarrow, Petastorm's and torch's loaders
	$(BIN)/python -W ignore -m tests.benchmarks.bench_data
	$(BIN)/python -W ignore -m tests.benchmarks.bench_snapshot

bench-checkpoint: setup  ## saving checkpoints: cost to the training, memory, folders; ten minutes
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m tests.benchmarks.bench_checkpoint $(if $(QUICK),--mib 64 --repeats 1 --output build/checkpoints.md)

bench-serve: setup  ## the live page with 10,000 trials: first paint, updates, memory; a minute; needs a Chromium
	$(BIN)/python -m tests.benchmarks.bench_serve

bench-usage: setup  ## what measuring the use of a rank costs; a minute
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m tests.benchmarks.bench_usage

bench-hypergradient: setup  ## learned weight decays beside random search; seven minutes. QUICK=1: two seeds
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m tests.benchmarks.bench_hypergradient $(if $(QUICK),--seeds 2 --output build/hypergradient.md)

bench-install: dist java  ## from nothing to a first result: pip, and a first study in a notebook; six minutes
	$(BIN)/python -W ignore -m tests.benchmarks.bench_install $$(ls dist/spark_hpo-*.whl)

bench-predict: setup java  ## predicting for a table, beside mlflow.pyfunc.spark_udf; two minutes
	$(BIN)/python -W ignore -m tests.benchmarks.bench_predict $(if $(QUICK),--rows 100000 --output build/predict.md)

ADULT := $(if $(wildcard ../shared/data/adult/adult.csv),,data/adult.csv)

bench-tabular: setup build/tables/installed $(ADULT)  ## the networks of `tabular`, beside boosted trees; an hour
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m tests.benchmarks.bench_tabular $(if $(QUICK),--trials 8 --seeds 1 --only Bikeshare --results build/quick_tabular.jsonl --output build/tabular.md)

# What differs between stacks: all of unit and contract, then each kind of job on a real Spark, once.
STACK_TESTS := tests/unit tests/repo tests/contract tests/integration/test_distributed.py \
	tests/integration/test_prepare_data.py::TestDigits \
	tests/integration/test_tune.py::test_last_line_of_the_job_is_its_result \
	tests/integration/test_tune.py::test_job_run_again_after_its_end_does_nothing \
	tests/integration/test_tune.py::test_mlflow_has_runs_of_the_study_and_every_trial \
	tests/integration/test_tune.py::test_registered_model_repeats_its_test_metrics_in_a_new_process

test-modern test-spark35: test-%: build/%/installed java  ## the newest Spark and pyarrow; Spark 3.5
	PYSPARK_PYTHON=$(abspath build/$*/bin/python) PYSPARK_DRIVER_PYTHON=$(abspath build/$*/bin/python) \
	build/$*/bin/python -m pytest $(STACK_TESTS)

test-dbr: PYTHON := $(if $(filter python3.11,$(PYTHON)),python3.12,$(PYTHON))
test-dbr: build/dbr/installed java  ## Databricks 17.3 LTS ML: its packages, its init script, Python 3.12; ten minutes
	PYSPARK_PYTHON=$(abspath build/dbr/bin/python) PYSPARK_DRIVER_PYTHON=$(abspath build/dbr/bin/python) \
	build/dbr/bin/python -m pytest $(filter-out tests/repo,$(STACK_TESTS))

test-airflow: setup java build/airflow/installed  ## jobs/airflow_dag.py in a real Airflow 3; ten minutes
	$(BIN)/python -m pytest tests/airflow

picture: setup java  ## docs/images/run.svg, a study on a terminal; some minutes
	$(BIN)/python -m tests.terminal_picture

gpu-check:  ## training on a real GPU, in 8 minutes; needs torch and pyarrow only
	PYTHONPATH=. $(firstword $(wildcard $(BIN)/python) $(PYTHON)) tests/gpu_check.py --page docs/benchmarks/gpu.md

screenshots: setup java  ## docs/images/*.png, of the quickstart's study, which is run first where it is not there
	test -f studies/quickstart/report.html || $(MAKE) tune
	$(BIN)/python -m tests.screenshots studies/quickstart docs/images
	$(BIN)/python -m tests.live_screenshots docs/images

test-large: setup  ## 20 GB of decoded rows train in 1.5 GB; a quarter of an hour, and 20 GB of disk
	$(BIN)/python -m pytest -s tests/large

test-pipelines: setup java build/pipelines/installed  ## DVC, Kubeflow Pipelines and the Spark operator's schema; five minutes
	$(BIN)/python -m pytest tests/pipelines

# In a mount namespace of its own, so that nothing of the machine stays mounted in the root.
test-image: setup  ## conf/Dockerfile, built in a bare Debian, and a study in it; ten minutes; root, debootstrap
	rm -rf build/image
	debootstrap --variant=minbase bookworm build/image http://deb.debian.org/debian
	unshare --mount $(BIN)/python -m pytest tests/image

docs: setup  ## the documentation site, in build/site; every warning is an error
	$(BIN)/python -m sphinx -q -E -W --keep-going -b html -c docs -d build/doctrees . build/site
	cp build/site/README.html build/site/index.html

linkcheck: setup  ## the addresses outside of the repository that the documentation names; needs the internet
	$(BIN)/python -m sphinx -q -W --keep-going -b linkcheck -c docs -d build/doctrees . build/linkcheck

dist: setup  ## wheel and sdist, in dist/
	rm -f dist/spark_hpo-*
	$(BIN)/python -m build --outdir dist

# An environment that has nothing but the wheel and what it asks for: no checkout (-I: a PYTHONPATH to one would
# pass for the package), no development tools.
FROM_WHEEL := build/from-wheel/bin/python
test-dist: dist java  ## what dist/ holds, and a study made with what it installs; some minutes
	$(PYTHON) -m venv --clear build/from-wheel
	$(FROM_WHEEL) -I -m pip install --quiet --constraint constraints.txt "$$(ls dist/spark_hpo-*.whl)[petastorm]"
	$(BIN)/python -m pytest tests/installed

# Of pip-audit's services the one that pip uses too: pypi.org. What it cannot find there is a failure.
AUDIT = build/audit/bin/pip-audit --strict --no-deps --disable-pip --progress-spinner off \
	$(shell sed -n 's/^\([A-Z][A-Za-z0-9-]*\)[: ].*/--ignore-vuln \1/p' audit.txt)

audit: build/audit/installed build/modern/constraints.txt build/spark35/constraints.txt  ## known vulnerabilities of what the stacks install; audit.txt has those that are accepted
	$(AUDIT) -r constraints.txt
	$(AUDIT) -r build/modern/constraints.txt
	$(AUDIT) -r build/spark35/constraints.txt

build/audit/installed:
	$(PYTHON) -m venv build/audit
	build/audit/bin/python -m pip install --quiet pip-audit
	@touch $@

dist/spark_hpo.zip: setup $(wildcard spark_hpo/*.py spark_hpo/*/*.py spark_hpo/*/*/*.py)  ## the package, for spark-submit --py-files
	$(BIN)/python -c "import pathlib, spark_hpo.backend.spark.package; spark_hpo.backend.spark.package.write_zip(pathlib.Path('$@'))"

# Other tables and studies in data/ and studies/ belong to the user, and so does the MLflow database.
EXAMPLES := data/digits data/adult data/adult.csv studies/quickstart studies/adult

clean:  ## remove build outputs and, after asking, the tables and studies of the examples
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
	@found=$$(ls -d $(EXAMPLES) 2>/dev/null); test -n "$$found" || exit 0; \
	printf 'Remove the examples: %s? [y/N] ' "$$(echo $$found)"; read -r answer; \
	case "$$answer" in y|Y|yes) rm -rf $$found;; *) echo "They are kept.";; esac

# Petastorm's pyarrow and numpy exist up to Python 3.12: later ones get the modern stack.
.venv/installed: pyproject.toml constraints.txt $(wildcard constraints-modern.txt)
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11, 3.12 or 3.13 is needed: install it, or call make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv || { rm -rf .venv; echo "Python's venv module is needed: apt-get install python3.11-venv" >&2; exit 1; }
	@awk -F== '!known[$$1]++' $$($(BIN)/python -c 'import sys; print("constraints-modern.txt" * (sys.version_info > (3, 13)))') constraints.txt > .venv/constraints.txt
	@echo "Installing spark_hpo and its packages into .venv, which takes two minutes or so. pip writes to .venv/pip.log"
	@$(BIN)/python -m pip install --progress-bar off --constraint .venv/constraints.txt --editable '.[petastorm,s3,delta,iceberg,examples,optuna,replay,connect,transformers,lightning,docs,tensorboard,wandb,notebook,dev]' > .venv/pip.log 2>&1 & \
	pip=$$!; began=$$(date +%s); while sleep 5 && kill -0 $$pip 2>/dev/null; do \
	echo "  $$(( $$(date +%s) - began )) s: $$(sed -n 's/^ *\(Collecting [^ (]*\|Downloading [^ ]*\|Installing collected packages\).*/\1/p' .venv/pip.log | tail -n 1)"; \
	done; wait $$pip || { tail -n 30 .venv/pip.log; exit 1; }
	@touch $@

EXTRAS_modern := s3,examples,optuna,replay,connect,transformers,lightning,tensorboard,wandb,notebook,dev
EXTRAS_spark35 := petastorm,$(EXTRAS_modern)

build/modern/installed build/spark35/installed: build/%/installed: build/%/constraints.txt build/%/python pyproject.toml
	$(PYTHON) -m venv --upgrade-deps build/$*
	build/$*/bin/python -m pip install --quiet --constraint $< --editable '.[$(EXTRAS_$*)]'
	@touch $@

# A stack's own versions, then those of constraints.txt: of each package the first one counts.
build/modern/constraints.txt build/spark35/constraints.txt: build/%/constraints.txt: constraints-%.txt constraints.txt
	@mkdir -p $(@D)
	awk -F== '!known[$$1]++' $^ > $@

# An environment is made anew for another Python.
.PHONY: FORCE
build/modern/python build/spark35/python build/dbr/python: FORCE
	@mkdir -p $(@D); version=$$($(PYTHON) --version); test "$$(cat $@ 2>/dev/null)" = "$$version" || \
	{ rm -rf $(@D)/bin $(@D)/lib $(@D)/lib64 $(@D)/installed; echo "$$version" > $@; }

# What the runtime has, then what its init script installs, and then the tools of the tests.
build/dbr/installed: constraints-dbr.txt conf/databricks_init.sh build/dbr/python pyproject.toml
	$(PYTHON) -m venv build/dbr
	build/dbr/bin/python -m pip install --quiet --requirement constraints-dbr.txt
	SPARK_HPO_SOURCE=$(CURDIR) SPARK_HPO_PYTHON=build/dbr/bin/python conf/databricks_init.sh
	build/dbr/bin/python -m pip install --quiet --constraint constraints-dbr.txt hypothesis pytest-timeout
	@touch $@

# Airflow's packages and ours do not go together: it sends spark-submit, which runs in .venv. Airflow tests its
# releases with constraints of its own; where they cannot be had, pip decides.
AIRFLOW := 3.3.2
AIRFLOW_CONSTRAINTS := https://raw.githubusercontent.com/apache/airflow/constraints-$(AIRFLOW)/constraints-3.11.txt

build/airflow/installed:
	$(PYTHON) -m venv build/airflow
	curl -fsSL $(AIRFLOW_CONSTRAINTS) -o build/airflow/constraints.txt || : > build/airflow/constraints.txt
	build/airflow/bin/python -m pip install --quiet --constraint build/airflow/constraints.txt \
		apache-airflow==$(AIRFLOW) apache-airflow-providers-apache-spark
	@touch $@

build/pipelines/installed:  # their packages do not go together with ours
	$(PYTHON) -m venv build/pipelines
	build/pipelines/bin/python -m pip install --quiet dvc==3.67.1 kfp==2.17.3 kubeflow-spark-api==2.4.0
	@touch $@

build/peers/installed: pyproject.toml  # peers whose packages do not go together with petastorm's
	$(PYTHON) -m venv build/peers
	build/peers/bin/python -m pip install --quiet dehb syne-tune torch==2.13.0 'pyarrow<18' huggingface_hub s3fs --editable '.[replay,optuna]'
	# NePS needs a newer NumPy than DEHB asks for; DEHB works with it.
	build/peers/bin/python -m pip install --quiet smac==2.4.1 neural-pipeline-search==0.17.0 torch==2.13.0 'pyarrow<18'
	@touch $@

build/tables/installed:  # packages that carry real tables; only their files are read
	mkdir -p $(@D)
	$(BIN)/pip download --quiet --no-deps --only-binary :all: --dest $(@D) islp==0.6.0 plotnine==0.15.9
	@touch $@

.PHONY: java
java:
	@version=$$("$${JAVA_HOME:+$$JAVA_HOME/bin/}java" -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p'); \
	case "$$version" in 17|21) ;; *) \
	echo "Java 17 or 21 is needed, found $${version:-none}: install it (apt-get install openjdk-17-jre-headless, brew install openjdk@17) or point JAVA_HOME at it" >&2; exit 1;; esac
