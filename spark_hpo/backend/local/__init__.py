"""Runs assignments as processes of this machine, without Spark."""
