"""What is to be seen of a study: the live line, the leaderboard, the report."""
