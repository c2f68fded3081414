"""Prepare a table for studies.

spark-submit jobs/prepare_data.py digits --output data/digits
spark-submit jobs/prepare_data.py csv --input adult.csv --label income-per-year --null-values '?' \\
    --output data/adult
spark-submit jobs/prepare_data.py csv --input s3a://lake/sales --label returned --in-place --output data/sales
spark-submit jobs/prepare_data.py synthetic --rows 1000000 --columns 33 --output data/synthetic
"""

import sys

from spark_hpo.prepare import main

if __name__ == "__main__":
    if code := main(sys.argv[1:]):  # a Databricks job takes any exit for a failure, the one with 0 too
        sys.exit(code)
