"""ClassicCluster: the addresses of the driver, from settings of the application."""

from __future__ import annotations

from typing import Any

import pytest

from spark_hpo.backend.spark.classic import ClassicCluster


class Settings:
    """A session that has settings only."""

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
def test_driver_address_follows_sparks_settings(settings: dict[str, str], host: str, listens: str) -> None:
    spark: Any = Settings(settings)
    cluster = ClassicCluster(spark)
    assert (cluster.driver_host, cluster.driver_bind_address) == (host, listens)
