"""The journal shown to people: MLflow as a projection of it."""
