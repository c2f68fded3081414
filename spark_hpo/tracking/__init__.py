"""Tracking: MLflow shows what the journal holds."""
