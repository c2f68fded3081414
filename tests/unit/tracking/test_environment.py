import logging
import os
import subprocess
import sys
import warnings

import pytest

from spark_hpo.tracking.environment import environment, quiet

NAME = "SPARK_HPO_TEST_VARIABLE"


def test_environment_sets_and_restores_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(NAME, raising=False)
    with environment({NAME: "1"}):
        assert os.environ[NAME] == "1"
    assert NAME not in os.environ


def test_environment_keeps_what_the_user_has_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAME, "mine")
    with environment({NAME: "1"}):
        assert os.environ[NAME] == "mine"
    assert os.environ[NAME] == "mine"


def test_overlapping_environments_restore_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(NAME, raising=False)
    first, second = environment({NAME: "1"}), environment({NAME: "2"})
    first.__enter__()
    second.__enter__()
    assert os.environ[NAME] == "2"
    first.__exit__(None, None, None)
    assert os.environ[NAME] == "2"
    second.__exit__(None, None, None)
    assert NAME not in os.environ


def test_loggers_are_quiet_inside_only() -> None:
    logger = logging.getLogger("alembic")
    before = logger.level
    with quiet():
        assert not logger.isEnabledFor(logging.INFO)
        assert logger.isEnabledFor(logging.WARNING)
    assert logger.level == before


def test_overlapping_quiet_loggers_are_restored() -> None:
    logger, filters = logging.getLogger("alembic"), list(warnings.filters)
    before = logger.level
    first, second = quiet(), quiet()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not logger.isEnabledFor(logging.INFO)
    second.__exit__(None, None, None)
    assert logger.level == before
    assert list(warnings.filters) == filters


def test_importing_the_tracker_does_not_import_mlflow() -> None:
    code = "import sys, spark_hpo.tracking.model_registry; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
