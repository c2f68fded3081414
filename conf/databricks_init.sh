#!/bin/bash
# Init script of a Databricks cluster: installs spark_hpo, and what the runtime lacks of its requirements.
# What its version was built around stays as it is: where that cannot be, the cluster does not start, and the
# log of this script says which package it is. PySpark is the runtime's own, which pip does not know of.
#
# SPARK_HPO_SOURCE: the repository, as the bundle puts it into the workspace.
set -euo pipefail
python=${SPARK_HPO_PYTHON:-/databricks/python/bin/python}
folder=$(mktemp -d)

"$python" -m pip list --format freeze |
  grep -E '^(mlflow|mlflow-skinny|numpy|pandas|pyarrow|scikit-learn|scipy|SQLAlchemy|torch|torchvision)==' > "$folder/runtime.txt"
# Older versions of MLflow accept a SQLAlchemy with which they cannot open a database.
grep -q '^SQLAlchemy==' "$folder/runtime.txt" || echo 'SQLAlchemy<2.1' >> "$folder/runtime.txt"
cp -r "$SPARK_HPO_SOURCE"/{spark_hpo,pyproject.toml,README.md} "$folder" # pip builds beside the source
"$python" -m pip install --no-deps "$folder"
"$python" - > "$folder/requirements.txt" <<'PYTHON'
from importlib.metadata import requires

for requirement in requires("spark_hpo") or []:
    if "extra ==" not in requirement and not requirement.startswith("pyspark"):
        print(requirement)
PYTHON
"$python" -m pip install --constraint "$folder/runtime.txt" --requirement "$folder/requirements.txt"
