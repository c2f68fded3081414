"""One rank that calls a training function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from spark_hpo.errors import TrialError, TrialPruned
from spark_hpo.train import generators
from spark_hpo.train.context import ResourceRange, TrainContext, checkpoint_value
from spark_hpo.train.rank import RankSetup
from spark_hpo.train.rank_failure import failure_of
from spark_hpo.trial import Measurement, Report


@dataclass(eq=False)
class FunctionRank:
    """Calls `train(ctx)` and reports the metrics, the checkpoint and the notes of the function.

    A trace of an assignment from 0 to 3 epochs: train(ctx) calls ctx.report({"loss": 0.5}, checkpoint=...)
    three times and ctx.note("depth", 4); the last checkpoint is saved; the report has resource 3, the metrics
    of epoch 3, a curve of 3 measurements and the note
    """

    setup: RankSetup
    function: Callable[[TrainContext], Any]

    @property
    def progress(self) -> int | None:
        """A count that grows while this rank is at work; None: the function has not counted anything yet."""
        return self.setup.coordinator.progress or None

    def run(self, report: Report) -> Report:
        """Complete the report of the assignment. It includes the notes of a function that fails."""
        context = self._open_context()
        try:
            report = self._call(context, report)
        except (Exception, SystemExit) as exc:  # the user's code may raise anything
            report = replace(report, failure=failure_of(exc, self.setup.world.size))
        finally:
            context.close()
        return replace(
            report,
            params=None if context.params is self.setup.assignment.params else context.params,
            notes=context.notes,
            curve=context.trace or report.curve,
        )

    def _open_context(self) -> TrainContext:
        setup, assignment = self.setup, self.setup.assignment
        resumed: dict[str, Any] = {}  # what an earlier attempt saved
        is_resumed = setup.checkpoints.resume(resumed.update)
        curve = tuple(Measurement(**measurement) for measurement in resumed.get("curve", ()))
        begin, stop = setup.passes
        # Without a checkpoint the function starts from scratch at each rung.
        has_checkpoint = is_resumed or assignment.checkpoint is not None
        start = begin if has_checkpoint else 0
        start = curve[-1].resource if curve else start
        if setup.driver is None:  # the threads of a driver share their generators
            generators.seed(assignment.seed, start or begin, setup.world.rank)
        return TrainContext(
            setup,
            ResourceRange(start, stop),
            has_checkpoint=has_checkpoint,
            load_checkpoint=partial(self._load_checkpoint, resumed),
            save=self._save_partial,
            curve=curve,
        )

    def _call(self, context: TrainContext, report: Report) -> Report:
        setup, assignment = self.setup, self.setup.assignment
        try:
            returned = self.function(context)
        except TrialPruned:
            setup.checkpoints.delete_partial()
            return self._finish(context, replace(report, is_pruned=True), None)
        if isinstance(returned, Mapping) and not context.measurements:
            context.report(returned, resource=context.resource.stop)
        if context.is_evaluation:
            metrics = context.measurements[-1].metrics if context.measurements else {}
            metrics = setup.checked_metrics(metrics)
            return replace(report, metrics=metrics, checkpoint=assignment.checkpoint)
        if not context.measurements:
            returned_text = "nothing" if returned is None else f"{returned!r:.60}"
            raise TrialError(
                f"the training function has reported no metrics and returned {returned_text}: return a dict "
                "of numbers by name, or call ctx.report with one"
            )
        metrics = context.measurements[-1].metrics
        if (missing := setup.spec.objective.missing(metrics)) is not None:
            names = ", ".join(sorted(metrics)) or "nothing"
            raise TrialError(f"{missing}; the function has reported finite values of {names}")
        path = None  # not the checkpoint before: it is not of the model that was just trained
        if (last := checkpoint_value(context.checkpoint)) is not None:
            path = setup.save(context.measurements[-1].resource, {"function": last})
        return self._finish(context, report, path)

    def _finish(self, context: TrainContext, report: Report, path: str | None) -> Report:
        """Return the report of a function that has ended or was pruned."""
        setup, assignment, measurements = self.setup, self.setup.assignment, context.measurements
        if not measurements:
            return replace(report, checkpoint=assignment.checkpoint)
        return replace(
            report,
            resource=setup.resource_after(measurements[-1].resource),
            metrics=measurements[-1].metrics,
            # A function without checkpoints measures the resources of lower rungs again.
            curve=tuple(m for m in measurements if m.resource > setup.passes[0]),
            checkpoint=path,
        )

    def _save_partial(self, context: TrainContext, state: Any) -> None:
        curve = [asdict(measurement) for measurement in context.measurements]
        self.setup.checkpoints.save_partial({"function": state, "curve": curve})

    def _load_checkpoint(self, resumed: dict[str, Any]) -> Any:
        if "function" in resumed:
            return resumed.pop("function")  # the function owns it: no second copy stays in memory
        checkpoints = self.setup.checkpoints
        path = checkpoints.resumed_from or self.setup.assignment.checkpoint
        return None if path is None else checkpoints.load(path)["function"]
