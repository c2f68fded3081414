"""Turns a Parquet table into batches: plan, filter, readers and the node cache. Needs no Spark."""
