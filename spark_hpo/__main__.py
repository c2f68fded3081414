"""`python -m spark_hpo`: the same as `spark-hpo`."""

from spark_hpo.cli import main

if __name__ == "__main__":
    main()
