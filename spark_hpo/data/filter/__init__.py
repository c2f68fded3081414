"""Row filters: SQL conditions, evaluated by Arrow and pruned with column statistics."""
