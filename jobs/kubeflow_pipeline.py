"""A study as a pipeline of Kubeflow; docs/kubernetes.md says what the cluster needs.

    prepare -> tune

    pip install kfp && python jobs/kubeflow_pipeline.py pipeline.yaml   # compiles it, for kfp or the web page

Each step is a spark-submit in the image of conf/Dockerfile. The folder belongs to the run, so a step that
is retried resumes its study. Change the constants; everything else is a parameter of the run.
"""

import sys  # kfp reads the annotations as objects: no `from __future__ import annotations`

from kfp import compiler, dsl

IMAGE = "registry.example.com/spark_hpo:0.1"
NAMESPACE = "kubeflow"  # of the pipeline, in which Spark starts the executors
ACCOUNT = "spark-hpo"  # of conf/kubernetes-account.yml
RETRIES = 3

_SUBMIT = f"""spark-submit --master k8s://https://kubernetes.default.svc --deploy-mode client \
--properties-file /opt/spark_hpo/conf/spark-defaults.conf \
--conf spark.driver.host="$(hostname -i)" \
--conf spark.kubernetes.namespace={NAMESPACE} \
--conf spark.kubernetes.authenticate.executor.serviceAccountName={ACCOUNT} \
--conf spark.kubernetes.container.image={IMAGE} \
--conf spark.kubernetes.executor.deleteOnTermination=true \
--conf spark.executor.cores=4 --conf spark.executor.memory=1g --conf spark.executor.memoryOverhead=10g \
--conf spark.executor.instances="$1" """

# The last line that a job prints is its result. The signal that ends the pod is passed on to spark-submit,
# which then pauses the study.
_RESULT = """ | tee /dev/stderr | tail -n 1 > "$5" &
trap 'pkill -TERM -f org.apache.spark.deploy.SparkSubmit' TERM
while kill -0 $! 2>/dev/null; do wait %1; code=$?; done
exit $code
"""


@dsl.container_component
def prepare(executors: int, arguments: str, folder: str) -> dsl.ContainerSpec:
    """Prepare the table of the run.

    Args:
        executors: of Spark.
        arguments: of prepare_data.py, without --output.
        folder: of the run.
    """
    return dsl.ContainerSpec(
        image=IMAGE,
        command=["/bin/bash", "-c"],
        args=[
            f'exec {_SUBMIT} /opt/spark_hpo/jobs/prepare_data.py $2 --output "$3/table"',
            "prepare",
            executors,
            arguments,
            folder,
        ],
    )


@dsl.container_component
def tune(
    executors: int, study_file: str, folder: str, overrides: str, result: dsl.OutputPath(str)
) -> dsl.ContainerSpec:
    """Search, and register the best model.

    Args:
        executors: of Spark.
        study_file: in the image, or mounted.
        folder: of the run.
        overrides: key=value ..., as on the command line.
        result: gets the JSON line with the best trial and the model.
    """
    return dsl.ContainerSpec(
        image=IMAGE,
        command=["/bin/bash", "-c"],
        args=[
            'set -o pipefail; mkdir -p "$(dirname "$5")"; '
            f'{_SUBMIT} /opt/spark_hpo/jobs/tune.py --config "$2" study_dir="$3/study" '
            f'data.path="$3/table" $4 {_RESULT}',
            "tune",
            executors,
            study_file,
            folder,
            overrides,
            result,
        ],
    )


@dsl.pipeline(name="spark-hpo-study")
def study(
    study_file: str = "/opt/spark_hpo/conf/quickstart.yaml",
    folder: str = "s3://my-bucket/pipelines",
    prepare_arguments: str = "digits --fractions 0.7,0.15,0.15 --row-group-rows 128",
    overrides: str = "mlflow.tracking_uri=http://mlflow:5000 training.checkpoint_every.seconds=20",
    executors: int = 8,
) -> str:
    """Prepare a table and tune a model.

    Args:
        folder: parent of the folders of all runs.
    """
    own = f"{folder}/{dsl.PIPELINE_JOB_ID_PLACEHOLDER}"
    table = prepare(executors=executors, arguments=prepare_arguments, folder=own)
    search = tune(executors=executors, study_file=study_file, folder=own, overrides=overrides).after(table)
    for step in (table, search):
        step.set_retry(RETRIES, backoff_duration="60s")  # the lease of a vanished driver runs out meanwhile
    return search.outputs["result"]


if __name__ == "__main__":
    compiler.Compiler().compile(study, sys.argv[1])
