"""The settings of a new session, in the code and in conf/spark-defaults.conf."""

from __future__ import annotations

from pathlib import Path

from spark_hpo.backend.spark.session import DEFAULTS

ROOT = Path(__file__).parents[3]


def test_shipped_spark_defaults_are_those_of_the_code() -> None:
    lines = (ROOT / "conf/spark-defaults.conf").read_text().splitlines()
    shipped = dict(line.split(maxsplit=1) for line in lines if line and not line.startswith("#"))
    assert shipped == DEFAULTS


def test_shipped_spark_defaults_all_have_a_comment() -> None:
    blocks = (ROOT / "conf/spark-defaults.conf").read_text().strip().split("\n\n")
    assert all(block.startswith("#") for block in blocks)
