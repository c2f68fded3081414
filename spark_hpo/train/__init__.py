"""Training on executors: tasks and training functions, the training loop, checkpoints."""
