"""`spark-hpo export`."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import click
import pandas as pd
import yaml

from spark_hpo.cli.command import Command, study_argument
from spark_hpo.cli.console import complain, say, write_file
from spark_hpo.cli.directory import load_study
from spark_hpo.driver.export import export_model
from spark_hpo.errors import CheckpointError, ConfigError, NoTrialSucceeded
from spark_hpo.report.answer import answer_of
from spark_hpo.report.leaderboard import curves, leaderboard
from spark_hpo.report.study_record import StudyRecord
from spark_hpo.study_dir.manifest import Kind
from spark_hpo.study_dir.storage import Storage
from spark_hpo.train.checkpoints import checkpoint, folder
from spark_hpo.trial import Trial

_TABLES = (".csv", ".parquet", ".json")


@click.command(
    "export",
    cls=Command,
    examples=[
        "spark-hpo export studies/quickstart --what best",
        "spark-hpo export studies/quickstart --what trials --output trials.parquet",
        "spark-hpo export studies/quickstart --what model --output best.pt",
        "spark-hpo export s3://bucket/studies/adult --what model --output best_model",
        "spark-hpo export studies/quickstart --what optuna --output study.db",
    ],
)
@study_argument
@click.option(
    "--what",
    type=click.Choice(["trials", "best", "model", "curves", "journal", "optuna"]),
    required=True,
    help="trials: one row per trial, the best first; best: the best trial's parameters; model: its model; "
    "curves: one row per measurement; journal: all events as JSON lines; optuna: an SQLite database for "
    "Optuna and optuna-dashboard.",
)
@click.option(
    "--output",
    metavar="PATH",
    help="The file to write. Its ending sets the format: .csv, .parquet or .json for trials and curves; "
    ".yaml or .json for best; .pt for the model's state dict, or no ending for a folder that Predictor.load "
    "reads; any for optuna.  [default: standard output, as CSV, YAML or JSON lines]",
)
def command(study: str, what: str, output: str | None) -> None:
    """Export trials, parameters, the model or the journal of a study.

    DIR is the study directory. The study may be running. Neither Spark nor MLflow is needed.
    """
    storage = Storage(study)
    record = StudyRecord.read(storage)
    if what == "model":
        _export_model(storage, record, output)
        return
    if what == "optuna":
        _export_optuna(record, output)
        return
    trials = record.trials.values()
    suffix = Path(output).suffix.lower() if output else ""
    makers: dict[str, Callable[[], bytes]] = {
        "trials": lambda: _table(_trials(record), suffix),
        "curves": lambda: _table(curves(trials), suffix),
        "best": lambda: _parameters(record, suffix),
        "journal": lambda: _journal(record),
    }
    data = makers[what]()
    if output is None:
        click.echo(data, nl=False)
    else:
        say(write_file(output, data))


def _trials(record: StudyRecord) -> pd.DataFrame:
    """The leaderboard, with a column for failures if there are any."""
    front = {trial.trial_id for trial in answer_of(record).front}
    frame = leaderboard(record.at_best, record.objective, front, best=record.best_id)
    failures = {t.trial_id: t.failure.message for t in record.trials.values() if t.failure is not None}
    return frame.assign(failure=frame["trial"].map(failures)) if failures else frame


def _table(frame: pd.DataFrame, suffix: str) -> bytes:
    match suffix:
        case "" | ".csv":
            return frame.to_csv(index=False).encode()
        case ".json":
            return frame.to_json(orient="records", indent=1, double_precision=15).encode()
        case ".parquet":
            buffer = io.BytesIO()
            _of_one_type_each(frame).to_parquet(buffer, index=False)
            return buffer.getvalue()
    raise ConfigError(f"--output must end with {', '.join(_TABLES)} for a table (got {suffix!r})")


def _of_one_type_each(frame: pd.DataFrame) -> pd.DataFrame:
    """Convert columns of several types to text: Parquet cannot store a choice between 2 and "auto"."""
    mixed = [str(name) for name in frame if frame[name].dropna().map(type).nunique() > 1]
    return frame.assign(**{name: frame[name].map(str, na_action="ignore") for name in mixed})


def _parameters(record: StudyRecord, suffix: str) -> bytes:
    best = _best(record)
    params = json.loads(json.dumps(best.params))
    if suffix == ".json":
        return (json.dumps(params, indent=1) + "\n").encode()
    if suffix not in ("", ".yaml", ".yml"):
        raise ConfigError(f"--output must end with .yaml or .json for parameters (got {suffix!r})")
    metric = record.objective.metric
    head = f"# {record.name}: trial {best.trial_id} after {record.amount(best.resource)}, "
    head += f"{metric} {best.metrics[metric]:.4g} on validation\n"
    return (head + yaml.safe_dump(params, sort_keys=False)).encode()


def _journal(record: StudyRecord) -> bytes:
    """The valid events of all drivers, as in the journal."""
    events = [event for driver in record.drivers for event in driver.events]
    return "".join(f"{json.dumps(event.to_json())}\n" for event in events).encode()


def _export_optuna(record: StudyRecord, output: str | None) -> None:
    if output is None:
        raise ConfigError("--what optuna needs --output, such as study.db")
    from spark_hpo.porting.optuna_storage import optuna_storage  # half a second

    file = write_file(output, optuna_storage(record))
    say(file)
    complain(f"to look at it: pip install optuna-dashboard; optuna-dashboard sqlite:///{file}")


def _export_model(storage: Storage, record: StudyRecord, output: str | None) -> None:
    if output is None:
        raise ConfigError("--what model needs --output, such as best.pt or a folder")
    best = _best_with_checkpoint(record)
    place = Path(output).absolute()
    assert best.checkpoint is not None
    is_folder = checkpoint.kind_of(storage, best.checkpoint) is Kind.FOLDER
    if place.suffix:
        if is_folder:
            raise ConfigError(
                f"--output {output} must have no ending, because the training function has reported a folder"
            )
        if place.suffix not in (".pt", ".pth"):
            raise ConfigError(
                f"--output {output} must end with .pt for a state dict, or have no ending for a model folder"
            )
        say(write_file(output, checkpoint.weights(storage, best.checkpoint)))
        return
    if place.is_dir() and any(place.iterdir()):
        raise ConfigError(f"--output {output} is not empty. Choose a new folder")
    if is_folder:
        place.mkdir(parents=True, exist_ok=True)
        folder.load(storage, best.checkpoint, place)
        say(str(place))
        return
    try:
        export_best(storage, place)
    except ConfigError as exc:
        exc.cure = " ".join(filter(None, (exc.cure, "Or export only its state dict, with --output model.pt")))
        raise
    say(str(place))
    complain(f"to load it: PYTHONPATH={place}, spark_hpo.train.predictor.Predictor.load({str(place)!r})")


def export_best(storage: Storage, folder: Path) -> None:
    """Write the best model of a study to a folder.

    Raises:
        CheckpointError: the checkpoint is missing or damaged.
        ConfigError: the study trained a function, or its directory does not suffice.
        NoTrialSucceeded: no trial has succeeded yet.
    """
    best = _best_with_checkpoint(StudyRecord.read(storage))
    study = load_study(storage, needs_credentials=False)
    study.change_to_folder()
    export_model(study.config, best, folder, space=study.space)


def _best_with_checkpoint(record: StudyRecord) -> Trial:
    best = _best(record)
    if best.checkpoint is None:
        raise CheckpointError(
            f"trial {best.trial_id} has no checkpoint: the training function must give its model to "
            "ctx.report(metrics, checkpoint=model.state_dict())"
        )
    return best


def _best(record: StudyRecord) -> Trial:
    best = answer_of(record).best
    if best is None:
        raise NoTrialSucceeded(f"{record.url}: no trial has succeeded yet")
    return best
