"""A page that shows studies while they run: `spark-hpo serve`."""
