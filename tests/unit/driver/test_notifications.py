"""Messages of whole studies, in this process, to a real web server."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from spark_hpo.config import StudyConfig
from spark_hpo.driver.run import run_study
from spark_hpo.driver.webhook import SIGNATURE, Webhook
from spark_hpo.errors import ConfigError, SparkHpoError
from spark_hpo.report.view import load_study
from spark_hpo.study.callback import Callback, RunningStudy
from spark_hpo.train.context import TrainContext
from spark_hpo.trial import Report, Trial
from tests.support.tables import clusters_study


class Hook(ThreadingHTTPServer):
    """Keeps what is posted. Answers with `states`, one after the other, then with 200."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.posts: list[tuple[dict[str, str], bytes]] = []
        self.states: list[int] = []
        self.has_message = threading.Condition()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/services/T000/canary"

    @property
    def messages(self) -> list[Any]:
        return [json.loads(body) for _, body in self.posts]

    def wait_for(self, count: int) -> None:
        with self.has_message:
            assert self.has_message.wait_for(lambda: len(self.posts) >= count, 20)


class _Handler(BaseHTTPRequestHandler):
    server: Hook

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.has_message:
            self.server.posts.append((dict(self.headers), body))
            state = self.server.states.pop(0) if self.server.states else 200
            self.server.has_message.notify_all()
        self.send_response(state)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hook]:
    hook = Hook()
    thread = threading.Thread(target=hook.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HOOK_URL", hook.url)
    monkeypatch.setenv("HOOK_KEY", "pepper")
    yield hook
    hook.shutdown()
    hook.server_close()


def config_of(folder: Path, **notify: Any) -> StudyConfig:
    return clusters_study(
        folder,
        task="train",
        data=None,
        objective={"metric": "error", "mode": "min"},
        space={"rate": {"type": "uniform", "low": 0.1, "high": 0.9}},
        search={"scheduler": "full", "max_resource": 1},
        budget={"trials": 3},
        notify={"url_variable": "HOOK_URL", **notify},
    )


def train(ctx: TrainContext) -> None:
    ctx.report({"error": 1.0 - 0.1 * ctx.trial_id})


@pytest.mark.medium
def test_study_reports_each_new_best_trial_and_its_end(tmp_path: Path, hook: Hook) -> None:
    config = config_of(tmp_path, events=["best", "end"], key_variable="HOOK_KEY")
    run_study(config, task=train, test=False)
    events = [(message["event"], message["trial"], message["value"]) for message in hook.messages]
    assert events == [("best", 0, 1.0), ("best", 1, 0.9), ("best", 2, 0.8), ("end", 2, 0.8)]
    assert hook.messages[-1]["text"] == f"Study {config.name} has ended after 3 trials: trial 2, error 0.8"
    for headers, body in hook.posts:
        assert headers[SIGNATURE] == "sha256=" + hmac.new(b"pepper", body, hashlib.sha256).hexdigest()
    # A resumed study may have other settings of messages.
    run_study(config_of(tmp_path, events=["end"], format="slack"), task=train, test=False)
    assert list(hook.messages[-1]) == ["text"]
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert not [file for file in written if b"canary" in file.read_bytes() or b"pepper" in file.read_bytes()]


@pytest.mark.medium
def test_study_reports_its_failure_in_the_format_of_slack(tmp_path: Path, hook: Hook) -> None:
    def fail(ctx: TrainContext) -> None:
        raise RuntimeError("no such layer")

    with pytest.raises(SparkHpoError):
        run_study(config_of(tmp_path, format="slack"), task=fail, test=False)
    (message,) = hook.messages
    assert list(message) == ["text"]
    assert "has ended early" in message["text"]


@pytest.mark.medium
def test_study_reports_once_that_it_has_stalled_and_that_it_goes_on(tmp_path: Path, hook: Hook) -> None:
    def wait(ctx: TrainContext) -> None:
        if ctx.trial_id == 1:
            hook.wait_for(1)  # until the stall is reported
        ctx.report({"error": 1.0})

    run_study(config_of(tmp_path, events=["stall"], stall_s=0.5), task=wait, test=False)
    texts = [message["text"] for message in hook.messages]
    assert len(texts) == 2
    assert "has stalled" in texts[0]
    assert "goes on" in texts[1]


@pytest.mark.medium
def test_paused_study_has_not_stalled(tmp_path: Path, hook: Hook) -> None:
    config = config_of(tmp_path, events=["stall"], stall_s=1.0)

    class Pauses(Callback):
        def on_report(self, study: RunningStudy, trial: Trial, report: Report) -> None:
            if trial.trial_id == 0:
                threading.Thread(target=pause).start()

    def pause() -> None:
        view = load_study(config.study_dir)
        view.pause()
        time.sleep(1.5)  # longer than a stall
        view.resume()

    def wait(ctx: TrainContext) -> None:
        time.sleep(0.3)
        ctx.report({"error": 1.0})

    run_study(config, task=wait, callbacks=[Pauses()], test=False)
    (driver,) = load_study(config.study_dir).record.drivers
    verbs = [event.data["verb"] for event in driver.events if event.kind == "steered"]
    assert verbs == ["pause", "resume"]
    assert hook.messages == []


def test_check_names_a_missing_address_before_the_study_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOOK_URL", raising=False)
    config = config_of(tmp_path / "studies")
    with pytest.raises(ConfigError) as raised:
        run_study(config, task=train)
    assert (raised.value.key, raised.value.value) == ("notify.url_variable", "HOOK_URL")
    assert not (tmp_path / "studies").exists()


def test_message_is_repeated_until_the_server_takes_it(hook: Hook) -> None:
    hook.states = [503, 429]
    webhook = Webhook(hook.url)
    webhook.send({"text": "first"})
    webhook.send({"text": "second"})
    assert webhook.close(20)
    assert [message["text"] for message in hook.messages] == ["first", "first", "first", "second"]


def test_message_that_is_refused_is_dropped_without_the_address(
    hook: Hook, caplog: pytest.LogCaptureFixture
) -> None:
    hook.states = [404]
    webhook = Webhook(hook.url)
    with caplog.at_level(logging.WARNING):
        webhook.send({"text": "first"})
        assert webhook.close(20)
    assert len(hook.posts) == 1
    assert "404" in caplog.text
    assert "canary" not in caplog.text


def test_send_returns_at_once_and_close_gives_up_where_the_server_hangs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with Hook() as silent, caplog.at_level(logging.WARNING):  # accepts connections, never answers
        webhook = Webhook(silent.url)
        began = time.monotonic()
        for i in range(200):
            webhook.send({"text": str(i)})
        assert not webhook.close(0.1)
        assert time.monotonic() - began < 5
    webhook._outbox._thread.join(20)  # its connection has ended with the server
    assert not webhook._outbox._thread.is_alive()
    assert "cannot be delivered" not in caplog.text
    assert "notifications are dropped" in caplog.text
