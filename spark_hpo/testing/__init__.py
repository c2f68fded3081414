"""Contract suites for plugins: subclass one in your tests, and run pytest.

    from spark_hpo.testing import SamplerContract

    class TestMySampler(SamplerContract):
        def build(self, space, seed):
            return MySampler(space, seed)

Needs pytest and Hypothesis: `pip install "spark_hpo[testing]"`.
"""

import pytest

pytest.register_assert_rewrite(
    *(f"{__name__}.{module}" for module in ("backends", "explorers", "readers", "samplers", "schedulers"))
)

from spark_hpo.testing.backends import BackendContract, stub_training  # noqa: E402 - after the line above
from spark_hpo.testing.explorers import ExplorerContract  # noqa: E402
from spark_hpo.testing.readers import ReaderContract  # noqa: E402
from spark_hpo.testing.samplers import SamplerContract  # noqa: E402
from spark_hpo.testing.schedulers import SchedulerContract  # noqa: E402

__all__ = [
    "BackendContract",
    "ExplorerContract",
    "ReaderContract",
    "SamplerContract",
    "SchedulerContract",
    "stub_training",
]
