"""What a first study searches with: the default configuration lies in the space, whatever the table is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from spark_hpo.search.registry import build_space
from spark_hpo.starter.choices import HOUR_S, MAX_TRIALS, MIN_TRIALS, TRIALS, Speed, choose, seconds_per_trial
from spark_hpo.starter.table_facts import LabelFacts, TableFacts

FLOWERS = TableFacts(
    path="data/flowers",
    train_rows=20_000,
    validation_rows=2_000,
    numbers=4,
    categories=(3, 50),
    label=LabelFacts(name="species", classes=3, largest_share=0.4),
)


@pytest.mark.parametrize("rows", [100, 3_000, 20_000, 90_000, 700_000, 5_000_000, 200_000_000])
@pytest.mark.parametrize("image", [(), (1, 8, 8), (3, 64, 64)])
def test_default_configuration_is_in_the_space(rows: int, image: tuple[int, ...]) -> None:
    chosen = choose(replace(FLOWERS, train_rows=rows, image=image))
    space = build_space(dict(chosen.space))
    assert space.validate(dict(chosen.first)) == chosen.first
    assert chosen.task == ("image" if image else "tabular")


@pytest.mark.parametrize(
    ("columns", "task"),
    [
        ({"lists": ("pages",)}, "sequence"),
        ({"texts": ("message",)}, "text"),
        ({"texts": ("message",), "lists": ("pages",)}, "text"),
    ],
)
def test_task_follows_from_the_columns(columns: dict[str, tuple[str, ...]], task: str) -> None:
    chosen = choose(replace(FLOWERS, **columns))  # type: ignore[arg-type] # only tuples
    assert chosen.task == task
    assert build_space(dict(chosen.space)).validate(dict(chosen.first)) == chosen.first


@pytest.mark.parametrize(
    ("label", "metric", "mode"),
    [
        (LabelFacts(name="y", classes=2, largest_share=0.6), "accuracy", "max"),
        (LabelFacts(name="y", classes=2, largest_share=0.87), "loss", "min"),
        (LabelFacts.of_classes("y", 2, {"no": 97, "yes": 3}), "average_precision", "max"),
        (LabelFacts.of_classes("y", 2, {"bad": 3, "good": 97}), "auroc", "max"),
        (LabelFacts.of_classes("y", 3, {"a": 50, "b": 45, "c": 5}), "average_precision", "max"),
        (LabelFacts.of_classes("y", 10, {str(i): 10 + i for i in range(10)}), "accuracy", "max"),
        (LabelFacts(name="y", deviation=3.0), "squared_error", "min"),
        (LabelFacts(name="y"), "squared_error", "min"),
    ],
    ids=[
        "even",
        "very uneven",
        "rare second class",
        "rare first class",
        "rare of three",
        "ten even classes",
        "number",
        "number that nobody has looked at",
    ],
)
def test_metric_follows_from_the_label(label: LabelFacts, metric: str, mode: str) -> None:
    chosen = choose(replace(FLOWERS, label=label))
    assert (chosen.metric, chosen.mode) == (metric, mode)
    is_rare = metric in ("average_precision", "auroc")
    assert chosen.training.get("class_weights") == ("balanced" if is_rare else None)


def test_draft_names_the_score_to_beat() -> None:
    assert "0.400" in choose(FLOWERS).metric_reason
    assert "9" in choose(replace(FLOWERS, label=LabelFacts(name="y", deviation=3.0))).metric_reason


def test_larger_tables_get_fewer_epochs_and_then_shares_of_the_rows() -> None:
    sizes = [500, 20_000, 500_000, 10_000_000, 10**9]
    searches = [choose(replace(FLOWERS, train_rows=rows)).search for rows in sizes]
    assert [search["max_resource"] for search in searches[:3]] == [81, 27, 9]
    assert [search.get("resource") for search in searches] == [None, None, None, "rows", "rows"]
    assert [search.get("epochs") for search in searches[3:]] == [3, 1]


def test_small_table_may_get_a_linear_model() -> None:
    assert choose(replace(FLOWERS, train_rows=400)).space["hidden_layers"]["low"] == 0
    assert choose(FLOWERS).space["hidden_layers"]["low"] == 1


def test_large_table_gets_the_residual_network_and_a_small_one_the_choice() -> None:
    assert choose(FLOWERS).space["model"] == choose(FLOWERS).first["model"] == "resnet"
    small = choose(replace(FLOWERS, train_rows=400))
    assert small.space["model"]["options"] == ["mlp", "resnet"]
    assert small.first["model"] == "mlp"


def test_frequencies_are_searched_where_there_are_numbers() -> None:
    assert "frequency_scale" in choose(FLOWERS).space
    assert "frequency_scale" not in choose(replace(FLOWERS, numbers=0)).space


def test_augmentation_is_searched_but_not_in_the_default() -> None:
    chosen = choose(replace(FLOWERS, image=(3, 32, 32)))
    assert chosen.space["crop_padding"]["high"] == 4
    assert chosen.space["flip_probability"]["options"] == [0.0, 0.5]
    assert chosen.first["crop_padding"] == chosen.first["flip_probability"] == 0


@pytest.mark.parametrize(
    ("categories", "options"),
    [((), None), ((3,), None), ((8,), [2, 4]), ((3, 50), [4, 8, 16]), ((1001,), [8, 16, 32])],
)
def test_embeddings_grow_with_the_categories(categories: tuple[int, ...], options: list[int] | None) -> None:
    space = choose(replace(FLOWERS, categories=categories)).space
    assert space.get("embedding_units", {}).get("options") == options


@pytest.mark.parametrize(("step_s", "slots"), [(1e-6, 8), (0.001, 2), (0.01, 4), (0.2, 1), (30.0, 1)])
def test_the_budget_is_filled_by_trials_of_the_measured_time(step_s: float, slots: int) -> None:
    speed = Speed(step_s=step_s, start_s=0.1, slots=slots)
    chosen = choose(FLOWERS, speed)
    batch_size = int(chosen.first["batch_size"])
    expected_s = chosen.trials * seconds_per_trial(FLOWERS, chosen.search, batch_size, speed) / slots
    assert MIN_TRIALS <= chosen.trials <= MAX_TRIALS
    assert chosen.seconds <= HOUR_S
    if MIN_TRIALS < chosen.trials < MAX_TRIALS:
        assert 0.5 * chosen.seconds <= expected_s <= chosen.seconds
    assert f"{slots} at once" in chosen.budget_reason or slots == 1


def test_the_time_of_a_trial_counts_rows_epochs_and_rungs() -> None:
    speed = Speed(step_s=0.01, start_s=0.0, slots=1)
    once = seconds_per_trial(FLOWERS, {"max_resource": 1}, 100, speed)
    assert once == pytest.approx((20_000 + 2_000 / 3) / 100 * 0.01, abs=0.5)
    assert seconds_per_trial(FLOWERS, {"max_resource": 27}, 100, speed) == pytest.approx(3 * once, rel=0.2)
    parts = {"resource": "rows", "max_resource": 27, "epochs": 1}
    assert seconds_per_trial(FLOWERS, parts, 100, speed) < once


def test_the_budget_of_a_table_that_is_not_measured_has_many_trials() -> None:
    assert (choose(FLOWERS).trials, choose(FLOWERS).seconds) == (TRIALS, HOUR_S)
