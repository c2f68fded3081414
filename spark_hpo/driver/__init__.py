"""One driver's work, from a study file to a registered model."""
