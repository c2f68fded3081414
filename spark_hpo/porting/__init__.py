"""Runs programs that were written for hyperopt's SparkTrials or for Optuna as studies."""
