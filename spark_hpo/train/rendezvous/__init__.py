"""How the ranks of one assignment find each other."""
