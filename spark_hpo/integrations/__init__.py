"""Trainers of other libraries as trials: Hugging Face's `Trainer`, and Lightning's."""
