"""Pictures and tables of a study: leaderboard, plots."""
