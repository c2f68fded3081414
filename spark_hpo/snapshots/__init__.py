"""Snapshots: the rows of a catalog table, a query or a DataFrame, written once as plain Parquet."""
