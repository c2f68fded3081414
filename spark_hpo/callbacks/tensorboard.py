"""TensorBoard: a run for each trial, with its learning curves, parameters and results."""

from __future__ import annotations

import importlib.util
import os
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spark_hpo.errors import ConfigError
from spark_hpo.report.leaderboard import flat_params
from spark_hpo.study.callback import Callback
from spark_hpo.trial import Measurement, Report, Trial, TrialState

if TYPE_CHECKING:
    from spark_hpo.study.callback import RunningStudy


@dataclass(frozen=True, slots=True)
class _Written:
    """The contents of the event files of a trial."""

    resource: int = 0  # of the last measurement
    is_begun: bool = False
    is_ended: bool = False


class TensorBoard(Callback):
    """Writes each trial as a run of TensorBoard: `tensorboard --logdir LOG_DIR`.

    - Scalars: each metric by the resource after which it was measured.
    - HParams: all parameters by their dotted names, with the last metrics and whether the trial failed.

    What the folder contains is not written again, so a resumed study continues there. A callback that is
    added on resume writes the study from its beginning.

    Args:
        log_dir: a folder, or a URL that TensorBoard can write to.

    Raises:
        ConfigError: TensorBoard is not installed.
    """

    def __init__(self, log_dir: str | Path) -> None:
        if importlib.util.find_spec("tensorboard") is None:
            raise ConfigError("TensorBoard(log_dir): tensorboard is not installed: pip install tensorboard")
        self._log_dir = str(log_dir).rstrip("/")

    def on_study_start(self, study: RunningStudy) -> None:
        for trial in study.trials.values():  # of earlier drivers
            if trial.curve or trial.state.is_out:
                written = self._written(trial.trial_id)
                missing = [m for m in trial.curve if m.resource > written.resource]
                has_ended = trial.state.is_out and not written.is_ended
                if missing or has_ended or not written.is_begun:
                    self._write(trial, missing, is_new=not written.is_begun, has_ended=has_ended)

    def on_report(self, study: RunningStudy, trial: Trial, report: Report) -> None:
        is_new = len(trial.curve) == len(report.curve)
        self._write(trial, report.curve, is_new=is_new, has_ended=False)

    def on_trial_end(self, study: RunningStudy, trial: Trial) -> None:
        self._write(trial, (), is_new=False, has_ended=True)

    def _write(self, trial: Trial, curve: Iterable[Measurement], *, is_new: bool, has_ended: bool) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        now = time.time()
        events = [Event(wall_time=now, file_version="brain.Event:2")]
        if is_new:
            events.append(Event(wall_time=now, summary=_session_start(trial)))
        for measurement in curve:
            values = [Summary.Value(tag=name, simple_value=v) for name, v in measurement.metrics.items()]
            summary = Summary(value=values)
            events.append(Event(wall_time=measurement.time, step=measurement.resource, summary=summary))
        if has_ended:
            events.append(Event(wall_time=now, summary=_session_end(trial)))
        self._write_file(trial.trial_id, events)

    def _write_file(self, trial_id: int, events: Iterable[Any]) -> None:
        """Write a file that TensorBoard reads after the earlier files of the trial.

        It reads them in the order of their names. The names of SummaryWriter end with a counter without
        leading zeros, so two files of one second may be read in the wrong order.
        """
        from tensorboard.compat import tf
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder, (seconds, nanoseconds) = self._folder(trial_id), divmod(time.time_ns(), 10**9)
        tf.io.gfile.makedirs(folder)
        name = f"events.out.tfevents.{seconds:010}.{nanoseconds:09}.{socket.gethostname()}.{os.getpid()}"
        writer = RecordWriter(tf.io.gfile.GFile(f"{folder}/{name}", "wb"))
        for event in events:
            writer.write(event.SerializeToString())
        writer.close()

    def _folder(self, trial_id: int) -> str:
        return f"{self._log_dir}/trial-{trial_id:06d}"

    def _written(self, trial_id: int) -> _Written:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from tensorboard.compat import tf
        from tensorboard.plugins.hparams import metadata

        folder = self._folder(trial_id)
        if not tf.io.gfile.exists(folder):
            return _Written()
        events = EventAccumulator(folder).Reload()
        tags = events.Tags()
        scalars = [event.step for tag in tags["scalars"] for event in events.Scalars(tag)]
        return _Written(
            resource=max(scalars, default=0),
            is_begun=metadata.SESSION_START_INFO_TAG in tags["tensors"],
            is_ended=metadata.SESSION_END_INFO_TAG in tags["tensors"],
        )


# TensorBoard shows only the parameters of the first Experiment that it finds, and SummaryWriter.add_hparams
# writes one for each trial. Without any Experiment, TensorBoard shows the parameters of all trials.


def _session_start(trial: Trial) -> Any:
    from tensorboard.plugins.hparams.summary_v2 import hparams_pb

    values = {name: "None" if item is None else item for name, item in flat_params(trial.params).items()}
    return hparams_pb(values, trial_id=str(trial.trial_id), start_time_secs=trial.started_at)


def _session_end(trial: Trial) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import api_pb2, metadata
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo

    status = api_pb2.STATUS_FAILURE if trial.state is TrialState.FAILED else api_pb2.STATUS_SUCCESS
    info = SessionEndInfo(status=status, end_time_secs=trial.ended_at or 0.0)
    data = metadata.create_summary_metadata(HParamsPluginData(session_end_info=info))
    value = Summary.Value(tag=metadata.SESSION_END_INFO_TAG, metadata=data, tensor=metadata.NULL_TENSOR)
    return Summary(value=[value])
