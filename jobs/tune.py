"""Run a study: `spark-submit jobs/tune.py --config conf/quickstart.yaml [key=value ...]`.

The last line of standard output is one JSON object. Exit codes: 0 done, 2 configuration, 3 data,
4 no trial succeeded, 130 interrupted; the same command resumes an interrupted study.
"""

from spark_hpo.cli import tune

if __name__ == "__main__":
    try:
        tune()
    except SystemExit as exc:
        if exc.code:  # a Databricks job takes any exit for a failure, the one with 0 too
            raise
