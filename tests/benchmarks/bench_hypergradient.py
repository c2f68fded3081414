# ruff: noqa: E501 - the text of the page
"""Learned weight decays beside random search, on scikit-learn's digits: `make bench-hypergradient`.

One trial learns the weight decay of each layer. Random search draws the decays of 20 trials, and the best of
these on the validation split counts. All are measured on a test split that no decision has used.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from scipy.stats import wilcoxon
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.optim import Optimizer

from spark_hpo.data.loader import Loader
from spark_hpo.data.schema import ColumnKind, Feature, Label, TableSchema
from spark_hpo.data.table import Table, open_table
from spark_hpo.objective import Mode, Objective
from spark_hpo.study_dir.storage import Storage
from spark_hpo.train import generators
from spark_hpo.train.learned_values import LayerDecay
from spark_hpo.train.loop import Trainer
from spark_hpo.train.rendezvous.world import World
from spark_hpo.train.step_coordinator import StepCoordinator
from spark_hpo.train.task import Batch
from spark_hpo.train.tasks.tabular import TabularTask
from spark_hpo.train.training_settings import LearnedParameter, Learning, TrainingSettings
from spark_hpo.trial import Split
from tests.benchmarks.page import FOLDER, Page, machine

TRAIN_ROWS, VALIDATION_ROWS = 100, 600
STEPS = 3000  # of the learned trial; each is one epoch, with all training rows as its batch
LAYERS, UNITS, LEARNING_RATE = 3, 64, 3e-3
RANDOM_TRIALS = 20
FIRST_SEED = 10  # the settings below were chosen on seeds 0 to 2
DECAY = LearnedParameter(name="weight_decay", low=1e-6, high=10.0, initial=1e-3, by_layer=True)
LEARNING = Learning(parameters=(DECAY,), every=30, terms=5, rate=0.01)

# In gradients of the training loss. An outer step takes the gradient of the validation loss, the one of the
# training loss that can be differentiated again (as two), four products with the Hessian for the step of the
# Neumann series, one for each term but the first, and the mixed derivative. A product counts as two.
OUTER_COST = 1 + 2 + 2 * (4 + LEARNING.terms - 1 + 1)
COST = STEPS * (1 + OUTER_COST / LEARNING.every)

SCHEMA = TableSchema(
    features=(Feature(name="pixels", kind=ColumnKind.ARRAY, shape=(64,)),),
    label=Label(name="digit", classes=tuple(map(str, range(10)))),
)
PARAMS = {"hidden_units": UNITS, "hidden_layers": LAYERS - 1, "learning_rate": LEARNING_RATE}

INTRODUCTION = f"""# Learned weight decays beside random search

Is it better to learn hyperparameters inside one trial ([hypergradients](../hypergradient.md)), or to search for them? `make bench-hypergradient` writes this page.

The data are scikit-learn's digits, divided anew for each seed: {TRAIN_ROWS} rows for training, {VALIDATION_ROWS} for validation, the other {1797 - TRAIN_ROWS - VALIDATION_ROWS:,} for the test. The model is `TabularTask` with {LAYERS} layers, trained by AdamW at a constant rate with one weight decay for each layer, from {DECAY.low:g} to {DECAY.high:g}. With so few training rows, the model fits all of them, and the weight decay decides how well it generalizes.

- **Learned**: one trial of {STEPS:,} steps that starts from {DECAY.initial:g} in each layer. One half of the validation rows drives its outer steps.
- **Random search**: {RANDOM_TRIALS} trials with random decays, log-uniform over the same range. The trial with the lowest loss on all validation rows counts. Each seed starts all trials from the same weights as the learned one.

The cost is counted in gradients. A product of the Hessian and a vector counts as two, so an outer step costs {OUTER_COST}, and the learned trial {COST:,.0f}. "The same cost" can mean two things, and the table has both: each of the {RANDOM_TRIALS} trials costs as much as the learned one ({COST:,.0f} steps, so the search costs {RANDOM_TRIALS} times as much), or all of them together do ({COST / RANDOM_TRIALS:,.0f} steps each). The settings of the outer steps were chosen on seeds 0 to 2, which are not among those below.

"""


class Digits(TabularTask):
    """The multilayer perceptron at a constant rate, without weight decay of the optimizer's own."""

    def build_optimizer(self, model: nn.Module) -> Optimizer:
        return torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)

    def build_schedule(self, optimizer: Optimizer, *, total_steps: int) -> None:
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A trained model on the test split."""

    loss: float
    accuracy: float
    cpu_s: float  # of its training, or of all trials together
    decays: Sequence[float] = ()


def write_digits(folder: Path, seed: int) -> Table:
    pixels, digits = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(digits))
    parts = np.split(order, [TRAIN_ROWS, TRAIN_ROWS + VALIDATION_ROWS])
    for split, rows in zip(Split, parts, strict=True):
        (folder / split).mkdir(parents=True)
        columns = {"pixels": list((pixels[rows] / 16).astype("float32")), "digit": digits[rows]}
        pq.write_table(pa.table(columns), folder / split / "part-0.parquet")
    (folder / "schema.json").write_text(json.dumps(SCHEMA.to_json()))
    return open_table(str(folder))


def open_loader(table: Table, split: Split, *, shuffle_window: int | None = None) -> Loader:
    return Loader(
        table,
        split,
        rank=0,
        world_size=1,
        batch_size=4096,
        seed=0,
        reader="arrow",
        shuffle_window=shuffle_window,
    )


def learned_trial(table: Table, seed: int) -> Measured:
    world = World(rank=0, size=1, device=torch.device("cpu"))
    settings = TrainingSettings(learning=LEARNING, evaluate_each_pass=False)
    measuring, outer = table.halved(seed)
    began = time.process_time()
    trainer = Trainer(Digits(PARAMS, SCHEMA), world, settings, seed=seed, total_steps=STEPS)
    with tempfile.TemporaryDirectory() as folder:
        trainer.fit(
            STEPS,
            train=open_loader(table, Split.TRAIN),
            validation=open_loader(measuring, Split.VALIDATION),
            objective=Objective(metric="loss", mode=Mode.MIN),
            coordinator=StepCoordinator(world, Storage(folder)),
            outer=open_loader(outer, Split.VALIDATION),
        )
    cpu_s = time.process_time() - began
    test = trainer.evaluate(open_loader(table, Split.TEST))
    decays = tuple(trainer.learned_values().values())
    return Measured(loss=test["loss"], accuracy=test["accuracy"], cpu_s=cpu_s, decays=decays)


class RandomSearch:
    """All trials of a random search, trained at once: their weights are stacked, [trials, ...].

    Nothing couples the trials, because AdamW works on single weights; a step takes a tenth of the time.
    """

    def __init__(self, table: Table, seed: int) -> None:
        task = Digits(PARAMS, SCHEMA)
        generators.seed(seed)  # as the trainer does
        self._model = task.build_model().eval()  # without dropout, evaluation is the same as training
        self._splits = {split: next(iter(next(open_loader(table, split).passes(0, 1)))) for split in Split}
        self._layers = LayerDecay(self._model).names
        self._weights = {
            name: nn.Parameter(weight.detach().expand(RANDOM_TRIALS, *weight.shape).clone())
            for name, weight in self._model.named_parameters()
        }
        drawn = np.random.default_rng((seed, 1)).random((RANDOM_TRIALS, LAYERS))
        self.decays = torch.tensor(DECAY.low * (DECAY.high / DECAY.low) ** drawn, dtype=torch.float32)
        self._optimizer = task.build_optimizer(nn.ParameterList(self._weights.values()))
        self.steps = 0
        self.cpu_s = 0.0

    def train(self, steps: int) -> Measured:
        """Train until this many steps are done, and measure the trial that is best by validation."""
        began = time.process_time()
        while self.steps < steps:
            loss = self._losses(Split.TRAIN).sum() + self._penalties().sum()
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()
            self.steps += 1
        self.cpu_s += time.process_time() - began
        with torch.no_grad():
            best = int(self._losses(Split.VALIDATION).nan_to_num(torch.inf).argmin())
            right = self._outputs(Split.TEST)[best].argmax(dim=1) == self._splits[Split.TEST]["digit"]
            return Measured(
                loss=float(self._losses(Split.TEST)[best]),
                accuracy=float(right.float().mean()),
                cpu_s=self.cpu_s,
                decays=self.decays[best].tolist(),
            )

    def _outputs(self, split: Split) -> Tensor:
        """Return [trials, rows, classes]."""
        batch = self._splits[split]

        def forward(weights: dict[str, Tensor], batch: Batch) -> Tensor:
            outputs: Tensor = torch.func.functional_call(self._model, weights, (batch,))
            return outputs

        outputs: Tensor = torch.func.vmap(forward, in_dims=(0, None))(self._weights, batch)
        return outputs

    def _losses(self, split: Split) -> Tensor:
        """Return the mean loss of each trial, [trials]."""
        target = self._splits[split]["digit"].expand(RANDOM_TRIALS, -1)
        each = nn.functional.cross_entropy(self._outputs(split).transpose(1, 2), target, reduction="none")
        return each.mean(dim=1)

    def _penalties(self) -> Tensor:
        norms = [self._weights[f"{layer}.weight"].square().sum(dim=(1, 2)) for layer in self._layers]
        return (self.decays * torch.stack(norms, dim=1)).sum(dim=1) / 2


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--output", type=Path, default=FOLDER / "hypergradient.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    page = Page(INTRODUCTION)
    page.say(f"Measured with one thread: {machine(('torch', 'scikit-learn', 'scipy'))}.")
    page.say()
    page.heading("seed", "learned", "each as costly", "together as costly", "learned decays, by layer")
    measured: list[tuple[Measured, ...]] = []
    for seed in range(FIRST_SEED, FIRST_SEED + options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            table = write_digits(Path(folder) / "digits", seed)
            search = RandomSearch(table, seed)
            together = search.train(round(COST / RANDOM_TRIALS))
            each = search.train(round(COST))
            measured.append((learned_trial(table, seed), each, together))
        cells = [f"{m.loss:.3f} ({m.accuracy:.1%})" for m in measured[-1]]
        page.row(seed, *cells, ", ".join(f"{decay:.2g}" for decay in measured[-1][0].decays))
    losses = np.array([[m.loss for m in row] for row in measured])
    accuracies = np.array([[m.accuracy for m in row] for row in measured])
    means = [f"{loss:.3f} ({a:.1%})" for loss, a in zip(losses.mean(0), accuracies.mean(0), strict=True)]
    page.row("mean", *means, "")
    page.say()
    page.say(
        "Test loss, and in brackets the accuracy. Wilcoxon's signed-rank test over the seeds, two-sided:"
    )
    page.say()
    page.heading("random search", "learned has the lower loss", "p", "learned has the higher accuracy", "p")
    for column, name in ((1, "each trial as costly"), (2, "all trials together as costly")):
        page.row(
            name,
            f"{(losses[:, 0] < losses[:, column]).sum()} of {len(losses)}",
            f"{wilcoxon(losses[:, 0], losses[:, column]).pvalue:.3g}",
            f"{(accuracies[:, 0] > accuracies[:, column]).sum()} of {len(losses)}",
            f"{wilcoxon(accuracies[:, 0], accuracies[:, column]).pvalue:.3g}",
        )
    page.say()
    seconds = np.array([[m.cpu_s for m in row] for row in measured]).mean(0)
    page.say(
        f"The learned trial took {seconds[0]:.1f} s of CPU time, and the {RANDOM_TRIALS} trials of the longer "
        f"search {seconds[1]:.1f} s, because they were trained at once with stacked weights."
    )
    page.write(options.output)


if __name__ == "__main__":
    main()
