"""Pictures of a study as plotly figures: each is made from a record, and says in words what it shows."""
