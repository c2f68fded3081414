"""Backends run assignments: in this process, on Spark, or on a virtual clock."""
