"""A study's measurements as a table."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from spark_hpo.trial import Trial

_COLUMNS = ("trial", "resource", "time", "seconds", "rows")


def curves(trials: Iterable[Trial]) -> pd.DataFrame:
    """One row a measurement on the validation split, trial by trial.

    Columns: trial, resource (epochs, or parts), time (seconds since 1970), seconds (of this epoch), rows
    (trained on in it), and each metric; one that is called like a column is `metrics.<name>`.
    """
    rows = [
        {
            "trial": trial.trial_id,
            "resource": measured.resource,
            "time": measured.time,
            "seconds": measured.seconds,
            "rows": measured.rows,
            **{f"metrics.{k}" if k in _COLUMNS else k: value for k, value in measured.metrics.items()},
        }
        for trial in sorted(trials, key=lambda trial: trial.trial_id)
        for measured in trial.curve
    ]
    metrics = sorted({name for row in rows for name in row} - set(_COLUMNS))
    return pd.DataFrame(rows, columns=[*_COLUMNS, *metrics])
