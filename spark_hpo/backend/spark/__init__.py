"""Runs assignments as Spark jobs, on classic Spark and on Spark Connect."""
