"""Views of a study: the live line, the leaderboard and the report."""
