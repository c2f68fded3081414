"""Task classes and training functions are found by name, or refused."""

from pathlib import Path

import pytest

from spark_hpo.errors import ConfigError
from spark_hpo.train.reference import find_trainable, is_task
from spark_hpo.train.tasks.tabular import TabularTask


def test_find_trainable_accepts_a_short_name_a_module_and_a_class() -> None:
    assert find_trainable("tabular") is TabularTask
    assert find_trainable("spark_hpo.train.tasks.tabular:TabularTask") is TabularTask
    assert find_trainable(TabularTask) is TabularTask
    assert is_task(TabularTask)


def test_find_trainable_accepts_where_earlier_versions_had_a_task() -> None:
    assert find_trainable("spark_hpo.train.tabular:TabularTask") is TabularTask
    assert find_trainable("spark_hpo.train.image:ImageTask") is find_trainable("image")


def test_is_task_is_false_for_a_function() -> None:
    assert not is_task(find_trainable(lambda ctx: None))


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("tabularr", "Did you mean 'tabular'"),
        ("nothing", "Valid names: tabular, image"),
        ("no_such_module:Task", "ModuleNotFoundError"),
        ("spark_hpo.train.tasks.tabular:TabularTusk", "Did you mean 'TabularTask'"),
        ("spark_hpo.train.task:TrainTask", "build_model, loss"),
        ("pathlib:Path", "must be a subclass of TrainTask or a function"),
        ("math:pi", "must be a subclass of TrainTask or a function"),
        ("random:seed_", "has no 'seed_'"),
        ("os.path:commonpath2", "has no 'commonpath2'"),
        ("uuid:uuid4", "must be a function of one argument"),
    ],
)
def test_find_trainable_refuses_what_cannot_be_trained(reference: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_trainable(reference)


def test_find_trainable_names_a_module_that_cannot_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_task.py").write_text("import nothing_like_this")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="ModuleNotFoundError"):
        find_trainable("broken_task:Task")
