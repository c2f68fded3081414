"""A study as a DAG of Airflow 3 with its Spark provider; docs/airflow.md says what workers need.

    prepare -> tune -> check -> is_better -> promote

Each run has its own folder, named after the run, so a retry by Airflow or by hand resumes the study there.
Change the five constants; everything else is a parameter of the run.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator
from airflow.sdk import DAG, Param, task
from airflow.sdk.exceptions import AirflowException, AirflowFailException

JOBS = Path(__file__).parent  # of this repository
CONNECTION = "spark_default"
SCHEDULE = None  # or "@weekly"
RETRIES = 3
# Longer than resources.grace_s, in which a study that was told to end saves, and than the 60 s after which
# the lease of a driver that has vanished with its machine runs out.
RETRY_DELAY = timedelta(minutes=2)

FOLDER = "{{ params.folder }}/{{ run_id | replace(':', '-') | replace('+', '-') }}"
STUDY = f"study_dir={FOLDER}/study data.path={FOLDER}/table {{{{ params.overrides }}}}"


class Submit(SparkSubmitOperator):
    """Runs spark-submit, returns its JSON line as the result, and stops it with SIGTERM instead of SIGKILL.

    The provider's own operator logs what is printed and returns nothing, and ends spark-submit with kill -9.
    """

    template_fields = (*SparkSubmitOperator.template_fields, "arguments")
    _NO_RETRY = (3, 4)  # exit codes: the table is wrong; no trial succeeded

    def __init__(self, *, arguments: str, **settings: Any) -> None:
        # The driver runs on the worker: what it prints and the signal that pauses it go through there.
        super().__init__(conn_id=CONNECTION, deploy_mode="client", name="spark_hpo", **settings)
        self.arguments = arguments
        self._answer: dict[str, Any] | None = None

    def execute(self, context: Any) -> dict[str, Any] | None:
        self.application_args = shlex.split(self.arguments)
        try:
            super().execute(context)
        except AirflowException as exc:
            if self._hook is not None and self._hook._submit_sp.returncode in self._NO_RETRY:
                raise AirflowFailException(str(exc)) from exc
            raise
        return self._answer

    def on_kill(self) -> None:
        # SIGTERM: running trials save what they have, and the study is paused. Airflow kills the task itself
        # after 5 s; the driver takes up to resources.grace_s, and ends without it.
        if self._hook is not None and self._hook._submit_sp is not None:
            self._hook._submit_sp.terminate()

    def _get_hook(self) -> Any:
        hook = super()._get_hook()
        log = hook._process_spark_submit_log
        hook._process_spark_submit_log = lambda lines: log(self._noticed(lines))
        return hook

    def _noticed(self, lines: Iterator[str]) -> Iterator[str]:
        for line in lines:
            if line.startswith('{"study"'):
                self._answer = json.loads(line)
            yield line


with DAG(
    "spark_hpo_study",
    schedule=SCHEDULE,
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": RETRIES, "retry_delay": RETRY_DELAY},
    params={
        "study_file": Param(f"{JOBS.parent}/conf/quickstart.yaml", type="string"),
        "folder": Param("/mnt/studies", type="string", description="shared by workers and executors"),
        "prepare": Param(
            "digits --fractions 0.7,0.15,0.15 --row-group-rows 128",  # as the study file has them
            type="string",
            description="arguments of prepare_data.py",
        ),
        "overrides": Param("", type="string", description="key=value ..., as on the command line"),
    },
    tags=["spark_hpo"],
    doc_md=__doc__,
) as dag:
    prepare = Submit(
        task_id="prepare",
        application=f"{JOBS}/prepare_data.py",
        arguments=f"{{{{ params.prepare }}}} --output {FOLDER}/table",
    )
    tune = Submit(
        task_id="tune",
        application=f"{JOBS}/tune.py",
        arguments=f"--config {{{{ params.study_file }}}} {STUDY} mlflow.promote=never",
    )
    # Trains nothing: it writes what MLflow may have missed, and compares on the same test rows.
    check = Submit(
        task_id="check",
        application=f"{JOBS}/tune.py",
        arguments=f"--config {{{{ params.study_file }}}} --sync {STUDY} mlflow.promote=never",
    )

    @task.short_circuit
    def is_better(answer: dict[str, Any]) -> bool:
        """Replace this rule with your own, or with an approval step."""
        return bool(answer["model"] and answer["model"]["is_best"])

    # Compares once more: another study may have been promoted since.
    promote = Submit(
        task_id="promote",
        application=f"{JOBS}/tune.py",
        arguments=f"--config {{{{ params.study_file }}}} --sync {STUDY} mlflow.promote=auto",
    )

    prepare >> tune >> check >> is_better(check.output) >> promote
