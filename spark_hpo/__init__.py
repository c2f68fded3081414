"""Hyperparameter tuning of PyTorch models on big Parquet tables, on the Spark cluster you already have."""

__version__ = "0.1.0"
