"""What runs on an executor: the task that users write, the loop around it, checkpoints."""
