"""What a classic application's settings mean for its driver."""

from __future__ import annotations

from typing import Any

import pytest

from spark_hpo.backend.spark.classic import ClassicCluster


class Settings:
    """A session of which only the settings are asked."""

    def __init__(self, settings: dict[str, str]) -> None:
        self._settings = settings
        self.sparkContext: Any = self

    def getConf(self) -> dict[str, str]:
        return self._settings


@pytest.mark.parametrize(
    ("settings", "host", "listens"),
    [
        ({"spark.master": "yarn", "spark.driver.host": "gateway"}, "gateway", "gateway"),
        (
            {
                "spark.master": "yarn",
                "spark.driver.host": "gateway",
                "spark.driver.bindAddress": "10.0.0.7",
            },
            "gateway",
            "10.0.0.7",
        ),
        ({"spark.master": "local[2]", "spark.driver.bindAddress": "10.0.0.7"}, "127.0.0.1", "127.0.0.1"),
    ],
)
def test_the_driver_is_reached_at_its_host_and_listens_where_spark_does(
    settings: dict[str, str], host: str, listens: str
) -> None:
    spark: Any = Settings(settings)
    cluster = ClassicCluster(spark)
    assert (cluster.driver_host, cluster.driver_bind_address) == (host, listens)
