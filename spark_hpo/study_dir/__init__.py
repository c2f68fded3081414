"""The study directory: journal, lease, checkpoints, frozen configuration."""
