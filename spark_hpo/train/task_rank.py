"""One rank that trains or evaluates a task."""

from __future__ import annotations

from dataclasses import dataclass, replace

from spark_hpo.errors import CheckpointError
from spark_hpo.train.compiled import share_compiled_code
from spark_hpo.train.loop import Trainer
from spark_hpo.train.rank import RankSetup
from spark_hpo.train.task import TrainTask
from spark_hpo.trial import Report, Split


@dataclass(eq=False)
class TaskRank:
    """Trains a `TrainTask` to the assignment's resource and saves a checkpoint, or evaluates it.

    A trace of an assignment from 3 to 9 epochs: restore the checkpoint of epoch 3; fit(9), which measures
    after each epoch; save checkpoints/trial-000004/000009-1.pt; report resource 9
    """

    setup: RankSetup
    task_class: type[TrainTask]

    @property
    def progress(self) -> int:
        """A count that grows while this rank is at work."""
        return self.setup.coordinator.progress

    def run(self, report: Report) -> Report:
        """Complete the report of the assignment. Metrics and checkpoint are the same on every rank."""
        setup, assignment = self.setup, self.setup.assignment
        assert setup.table is not None, "a task needs a table"
        if setup.settings.compile:
            share_compiled_code(setup.spec.node_cache)
        train = setup.open_loader(Split.TRAIN)
        trainer = Trainer(
            self.task_class({**setup.settings.loss_params, **assignment.params}, setup.table.schema),
            setup.world,
            setup.settings,
            seed=assignment.seed,
            total_steps=train.num_steps(0, setup.max_passes),
        )
        self._restore(trainer)
        _, stop = setup.passes
        if trainer.resource < stop and not trainer.is_on_plateau:
            trainer.fit(
                stop,
                train=train,
                validation=setup.open_loader(Split.VALIDATION),
                objective=setup.spec.objective,
                coordinator=setup.coordinator,
                save=setup.checkpoints.save_partial,
                outer=setup.open_outer_loader(),
            )
        if trainer.curve:
            metrics = setup.checked_metrics(trainer.curve[-1].metrics)
            path = setup.save(trainer.resource, trainer.state())
        else:  # an evaluation, or a trial that has been on its plateau since a lower rung
            loader = setup.open_loader(assignment.split)
            measured = trainer.evaluate(loader, setup.coordinator)
            if assignment.split is Split.VALIDATION:
                measured |= trainer.learned_values()
            metrics = setup.checked_metrics(measured)
            path = assignment.checkpoint
        return replace(
            report,
            resource=setup.resource_after(trainer.resource),
            metrics=metrics,
            curve=tuple(trainer.curve),
            checkpoint=path,
            notes=trainer.notes,
        )

    def _restore(self, trainer: Trainer) -> None:
        """Load what an earlier attempt saved, else the checkpoint that the assignment starts from."""
        storage, path = self.setup.spec.storage, self.setup.assignment.checkpoint
        checkpoints = self.setup.checkpoints
        if checkpoints.resume(trainer.load_partial, trainer.tensor_like) or path is None:
            return
        state = checkpoints.load(path, trainer.tensor_like)
        try:
            trainer.load_state(state)
        except CheckpointError as exc:
            raise CheckpointError(f"{storage.url}/{path}: {exc}") from exc
