"""The tasks that ship with the package: one module per task, and modules for the layers that they share."""
