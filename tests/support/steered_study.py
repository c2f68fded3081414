"""A study whose trials take some seconds, so that it can be steered while it runs."""

TASK = """
import time

def train(ctx):
    done = ctx.load_checkpoint() or 0
    for epoch in range(*ctx.resource):
        time.sleep(0.3)
        done += 1
        ctx.report({"loss": (ctx.params["x"] - 0.25) ** 2 + 1 / done}, checkpoint=done)
    if ctx.is_evaluation:
        ctx.report({"loss": 0.0})
"""
STUDY = """
name: steered
study_dir: study
task: task.py:train
objective: {metric: loss, mode: min}
space: {x: {type: uniform, low: -1, high: 1}, y: {type: uniform, low: 0, high: 1}}
search: {scheduler: full, max_resource: 9}
budget: {trials: 300}
backend: local
resources: {max_concurrent: 2, grace_s: 10}
mlflow: {tracking_uri: "sqlite:///mlflow.db"}
"""
