"""Parameters as columns: the values that the trials of a study have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spark_hpo.report.importance import importance_of
from spark_hpo.report.leaderboard import flat_params
from spark_hpo.report.pictures.theme import LOG_SPAN
from spark_hpo.report.study_record import StudyRecord
from spark_hpo.search.space.parameter import Choice
from spark_hpo.trial import Trial

_FEW = 5  # distinct values, up to which each has a tick


@dataclass(frozen=True, slots=True)
class Column:
    """A parameter and its values."""

    name: str
    values: Mapping[int, Any]  # by trial
    in_log: bool | None = None  # in the space; None: the space does not have it

    @property
    def is_number(self) -> bool:
        # A mix such as 2 and "auto" is categorical; plotly would put it onto one numeric axis.
        return all(isinstance(v, int | float) and not isinstance(v, bool) for v in self.values.values())

    @property
    def is_log(self) -> bool:
        low, high = min(self.values.values()), max(self.values.values())
        return bool(low > 0 and (high / low >= LOG_SPAN if self.in_log is None else self.in_log))

    @property
    def steps(self) -> list[Any] | None:
        """The distinct values of a number if they are few, else None."""
        distinct = sorted(set(self.values.values()))
        return distinct if len(distinct) <= _FEW else None

    @property
    def words(self) -> list[str]:
        """The categories of a parameter that is not a number: first numbers in their order, then words."""
        distinct = {str(v): v for v in self.values.values()}
        return sorted(distinct, key=lambda word: _sorting_key(distinct[word]))


def measured(record: StudyRecord) -> list[Trial]:
    """Trials that keep every limit, each at its best, the best first."""
    return [trial for trial in record.ranking if not trial.violation]


def columns_of(record: StudyRecord, trials: Sequence[Trial]) -> list[Column]:
    """Return the parameters of these trials by name, without constants unless there is only one trial."""
    in_log = {
        ".".join(map(str, dimension.path)): dimension.parameter.log
        for dimension in record.space.dimensions()
        if not isinstance(dimension.parameter, Choice)
    }
    by_name: dict[str, dict[int, Any]] = {}
    for trial in trials:
        for name, item in flat_params(trial.params).items():
            by_name.setdefault(name, {})[trial.trial_id] = item
    columns = [Column(name, by_name[name], in_log.get(name)) for name in sorted(by_name)]
    return [c for c in columns if len(trials) == 1 or len(c.words) > 1 or len(c.values) < len(trials)]


def by_importance(record: StudyRecord, columns: list[Column]) -> list[Column]:
    shares = importance_of(record).shares
    # The share of an entry of an option, such as `optimizer.name`, may be listed under its choice.
    return sorted(columns, key=lambda c: -shares.get(c.name, shares.get(c.name.rpartition(".")[0], 0.0)))


def _sorting_key(item: Any) -> tuple[bool, float, str]:
    is_number = isinstance(item, int | float) and not isinstance(item, bool)
    return not is_number, float(item) if is_number else 0.0, str(item)
