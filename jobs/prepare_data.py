"""Prepare a table for studies, like `spark-hpo prepare`.

spark-submit jobs/prepare_data.py digits --output data/digits
spark-submit jobs/prepare_data.py csv --input adult.csv --label income-per-year --null-values '?' \\
    --output data/adult
spark-submit jobs/prepare_data.py csv --input s3a://lake/sales --label returned --in-place --output data/sales
spark-submit jobs/prepare_data.py synthetic --rows 1000000 --columns 33 --output data/synthetic
"""

from spark_hpo.cli import prepare_data

if __name__ == "__main__":
    try:
        prepare_data()
    except SystemExit as exc:
        if exc.code:  # a Databricks job takes any exit for a failure, even one with code 0
            raise
