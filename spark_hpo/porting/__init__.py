"""Programs that were written for hyperopt's SparkTrials or for Optuna, as they are."""
