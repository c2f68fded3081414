"""Finds code that users bring: plugins of other packages, and files of their own."""
