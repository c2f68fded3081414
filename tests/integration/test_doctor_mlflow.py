"""The doctor's checks of a real MLflow server, which leave it unchanged."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from mlflow import MlflowClient

from spark_hpo.errors import TrackingError
from spark_hpo.tracking.server_check import check_server
from tests.support.faulty_proxy import Fault, FaultyProxy
from tests.support.mlflow_database import write_database
from tests.support.mlflow_server import Server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("mlflow")
    server = Server(write_database(folder), folder / "served")
    server.start()
    yield server
    server.kill()


@pytest.fixture
def proxy(server: Server) -> Iterator[FaultyProxy]:
    with FaultyProxy(server.port) as proxy:
        yield proxy


def test_doctor_leaves_a_working_mlflow_server_unchanged(server: Server) -> None:
    client = MlflowClient(server.uri)
    before = [dict(experiment) for experiment in client.search_experiments()]
    found = check_server(server.uri)
    assert found.message == f"{server.uri} answers and accepts runs and models"
    assert found.warnings == ()
    assert [dict(experiment) for experiment in client.search_experiments()] == before
    assert not client.search_registered_models()


def test_doctor_fails_if_the_server_refuses_experiments(proxy: FaultyProxy) -> None:
    proxy.fault = lambda method, path: Fault.REFUSE if path.endswith("experiments/create") else Fault.NONE
    with pytest.raises(TrackingError, match=r"it refuses to write: .*MLFLOW_TRACKING_USERNAME"):
        check_server(proxy.uri)
    assert proxy.met


def test_doctor_warns_of_a_server_without_a_model_registry(proxy: FaultyProxy) -> None:
    proxy.fault = lambda method, path: Fault.REFUSE if "registered-models" in path else Fault.NONE
    [doubt] = check_server(proxy.uri).warnings
    assert doubt.startswith("its model registry does not answer: ")
