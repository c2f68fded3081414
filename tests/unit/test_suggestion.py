from __future__ import annotations

from spark_hpo.errors import closest, suggestion


def test_closest_returns_the_name_spelt_most_alike_or_none() -> None:
    assert closest("hyperbnad", ["asha", "hyperband"]) == "hyperband"
    assert closest("bayes", ["asha", "hyperband"]) is None
    assert closest(3, []) is None


def test_closest_knows_abbreviations() -> None:
    names = ["dropout", "learning_rate", "weight_decay"]
    assert [closest(name, names) for name in ("lr", "wd", "d", "")] == [
        "learning_rate",
        "weight_decay",
        None,
        None,
    ]
    assert closest("lr", ["l2r", "learning_rate"]) == "l2r"


def test_suggestion_lists_the_valid_names_but_not_hundreds() -> None:
    assert suggestion("tpee", ["tpe", "random"]) == "Did you mean 'tpe'? Valid names: tpe, random"
    assert suggestion("x", []) == "Valid names: none"
    assert suggestion("z", [f"column_{i}" for i in range(300)]).endswith("column_29 and 270 more")
