"""Row filters in SQL."""
