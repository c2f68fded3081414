"""Which rows each rank reads, decided from Parquet footers."""
