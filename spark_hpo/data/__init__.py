"""From Parquet footers to batches: manifest, shards, readers. No Spark."""
