"""Checkpoints: how a state is written to the study directory, and how an attempt saves and resumes."""
