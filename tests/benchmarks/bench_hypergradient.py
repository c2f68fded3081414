# ruff: noqa: E501 - the text of the page
"""Learned weight decays beside random search, on scikit-learn's digits: `make bench-hypergradient`.

One trial learns the weight decay of each layer. Random search draws the decays of 20 trials, and the best of
these on the validation split counts. All are measured on a test split that no decision has used.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
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
LENGTHS = (300, 600, 1500)  # steps of the learned trial; each is one epoch, with all rows as its batch
LAYERS, UNITS, LEARNING_RATE = 3, 64, 3e-3
RANDOM_TRIALS = 20
FEWER_TRIALS = (10, 5)
FIRST_SEED = 10  # the settings below were chosen on seeds 0 to 9
DECAY = LearnedParameter(name="weight_decay", low=1e-6, high=10.0, initial=1e-5, by_layer=True)
LEARNING = Learning(parameters=(DECAY,))
CONSTANT = replace(LEARNING, every=10**9)
MIDDLE = replace(CONSTANT, parameters=(replace(DECAY, initial=None),))
NARROW = (1e-5, 0.1)  # of a search whose user knows more

# In gradients of the training loss. An outer step takes the gradient of the validation loss, the one of the
# training loss that can be differentiated again (as two), four products with the Hessian for the step of the
# Neumann series, one for each term but the first, and the mixed derivative. A product counts as two.
OUTER_COST = 1 + 2 + 2 * (4 + LEARNING.terms - 1 + 1)


def cost(steps: int) -> int:
    """Return the cost of a learned trial, in gradients."""
    outer_steps = sum(
        step > LEARNING.first_step(steps) and step % LEARNING.every == 0 for step in range(1, steps + 1)
    )
    return steps + outer_steps * OUTER_COST


SCHEMA = TableSchema(
    features=(Feature(name="pixels", kind=ColumnKind.ARRAY, shape=(64,)),),
    label=Label(name="digit", classes=tuple(map(str, range(10)))),
)
PARAMS = {"hidden_units": UNITS, "hidden_layers": LAYERS - 1, "learning_rate": LEARNING_RATE}

INTRODUCTION = f"""# Learned weight decays beside random search

Is it better to learn hyperparameters inside one trial ([hypergradients](../hypergradient.md)), or to search for them? `make bench-hypergradient` writes this page.

The data are scikit-learn's digits, divided anew for each seed: {TRAIN_ROWS} rows for training, {VALIDATION_ROWS} for validation, the other {1797 - TRAIN_ROWS - VALIDATION_ROWS:,} for the test. The model is `TabularTask` with {LAYERS} layers, trained by AdamW at a constant rate with one weight decay for each layer, from {DECAY.low:g} to {DECAY.high:g}. With so few training rows, the model fits all of them, and the weight decay decides how well it generalizes.

- **Learned**: one trial that starts from a weak decay, {DECAY.initial:g} in each layer. One half of the validation rows drives its outer steps. All settings of `search.hypergradient` are the defaults.
- **Constant**: one trial of the same cost with the decay that the learned one starts from. The difference is what learning achieves.
- **Middle**: the same with the middle of the range, {MIDDLE.parameters[0].start:.2g}, as a user might guess.
- **Random search**: up to {RANDOM_TRIALS} trials with random decays, log-uniform over the same range. The trial with the lowest loss on all validation rows counts. Each seed starts all trials from the same weights as the learned one.

The cost is counted in gradients. A product of the Hessian and a vector counts as two, so an outer step costs {OUTER_COST}, and the learned trial of {LENGTHS[0]} steps {cost(LENGTHS[0]):,}. "Together" means that all trials of a search cost as much as the one learned trial; "each" means that every trial does, so the search costs {RANDOM_TRIALS} times as much. The start, the defaults and the {LENGTHS[0]} steps were chosen on seeds 0 to 9, which are not among those below.

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


def one_trial(table: Table, seed: int, steps: int, learning: Learning) -> Measured:
    world = World(rank=0, size=1, device=torch.device("cpu"))
    settings = TrainingSettings(learning=learning, evaluate_each_pass=False)
    measuring, outer = table.halved(seed)
    trainer = Trainer(Digits(PARAMS, SCHEMA), world, settings, seed=seed, total_steps=steps)
    with tempfile.TemporaryDirectory() as folder:
        trainer.fit(
            steps,
            train=open_loader(table, Split.TRAIN),
            validation=open_loader(measuring, Split.VALIDATION),
            objective=Objective(metric="loss", mode=Mode.MIN),
            coordinator=StepCoordinator(world, Storage(folder)),
            outer=open_loader(outer, Split.VALIDATION),
        )
    test = trainer.evaluate(open_loader(table, Split.TEST))
    decays = tuple(trainer.learned_values().values())
    return Measured(loss=test["loss"], accuracy=test["accuracy"], decays=decays)


class RandomSearch:
    """All trials of a random search, trained at once: their weights are stacked, [trials, ...].

    Nothing couples the trials, because AdamW works on single weights; a step takes a tenth of the time.
    """

    def __init__(self, table: Table, seed: int, low: float = DECAY.low, high: float = DECAY.high) -> None:
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
        self.decays = torch.tensor(low * (high / low) ** drawn, dtype=torch.float32)
        self._optimizer = task.build_optimizer(nn.ParameterList(self._weights.values()))
        self.steps = 0

    def train(self, steps: int) -> None:
        """Train until this many steps are done."""
        while self.steps < steps:
            loss = self._losses(Split.TRAIN).sum() + self._penalties().sum()
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()
            self.steps += 1

    @torch.no_grad()
    def best(self, trials: int) -> Measured:
        """Measure the trial that is best by validation, among this many."""
        best = int(self._losses(Split.VALIDATION)[:trials].nan_to_num(torch.inf).argmin())
        right = self._outputs(Split.TEST)[best].argmax(dim=1) == self._splits[Split.TEST]["digit"]
        return Measured(
            loss=float(self._losses(Split.TEST)[best]),
            accuracy=float(right.float().mean()),
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


@dataclass(frozen=True, slots=True)
class Rival:
    """A random search, or a number of its trials, beside a learned trial of some length."""

    name: str
    trials: int
    steps: int  # of each trial
    is_narrow: bool = False


def rivals(length: int) -> list[Rival]:
    budget = cost(length)
    together = [
        Rival(f"{trials} trials, together", trials, round(budget / trials))
        for trials in (RANDOM_TRIALS, *FEWER_TRIALS)
    ]
    if length > LENGTHS[0]:
        return together
    narrow = [
        replace(r, name=f"{r.name}, decays from {NARROW[0]:g} to {NARROW[1]:g}", is_narrow=True)
        for r in together
    ]
    return [*together, *narrow, Rival(f"{RANDOM_TRIALS} trials, each", RANDOM_TRIALS, budget)]


def measure(seed: int) -> dict[int, dict[str, Measured]]:
    """Return what was measured with one seed, by length of the learned trial and method."""
    with tempfile.TemporaryDirectory() as folder:
        table = write_digits(Path(folder) / "digits", seed)
        found: dict[int, dict[str, Measured]] = {}
        for length in LENGTHS:
            found[length] = {
                "learned": one_trial(table, seed, length, LEARNING),
                "constant": one_trial(table, seed, cost(length), CONSTANT),
            }
        found[LENGTHS[0]]["middle"] = one_trial(table, seed, cost(LENGTHS[0]), MIDDLE)
        both = {False: RandomSearch(table, seed), True: RandomSearch(table, seed, *NARROW)}
        planned = [(rival, length) for length in LENGTHS for rival in rivals(length)]
        for rival, length in sorted(planned, key=lambda pair: pair[0].steps):
            search = both[rival.is_narrow]
            search.train(rival.steps)
            found[length][rival.name] = search.best(rival.trials)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--output", type=Path, default=FOLDER / "hypergradient.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    page = Page(INTRODUCTION)
    page.say(f"Measured with one thread: {machine(('torch', 'scikit-learn', 'scipy'))}.")
    page.say()
    measured = [measure(seed) for seed in range(FIRST_SEED, FIRST_SEED + options.seeds)]
    for length in LENGTHS:
        page.say(f"## A learned trial of {length:,} steps, which costs {cost(length):,} gradients")
        page.say()
        page.heading(
            "method",
            "steps of a trial",
            "test loss",
            "accuracy",
            "learned has the lower loss",
            "p",
            "higher accuracy",
            "p",
        )
        constant = ("constant", "middle") if length == LENGTHS[0] else ("constant",)
        steps = (
            {"learned": length}
            | dict.fromkeys(constant, cost(length))
            | {r.name: r.steps for r in rivals(length)}
        )
        losses, accuracies = (
            {name: np.array([getattr(m[length][name], field) for m in measured]) for name in steps}
            for field in ("loss", "accuracy")
        )
        for name, number in steps.items():
            page.row(
                name,
                f"{number:,}",
                f"{losses[name].mean():.3f}",
                f"{accuracies[name].mean():.1%}",
                *_compared(losses[name] - losses["learned"]),
                *_compared(accuracies["learned"] - accuracies[name]),
            )
        page.say()
    page.say("Means over the seeds; p is of Wilcoxon's signed-rank test, two-sided. The seeds, one by one:")
    page.say()
    names = ["learned", "constant", "middle", *(r.name for r in rivals(LENGTHS[0]) if not r.is_narrow)]
    page.heading("seed", *names, "learned decays, by layer")
    for seed, found in enumerate(measured, FIRST_SEED):
        row = found[LENGTHS[0]]
        decays = ", ".join(f"{decay:.2g}" for decay in row["learned"].decays)
        page.row(seed, *(f"{row[name].loss:.3f}" for name in names), decays)
    page.say()
    page.say(f"Test losses beside the learned trial of {LENGTHS[0]} steps.")
    page.write(options.output)


def _compared(advantage: NDArray[np.float64]) -> tuple[str, str]:
    """Return how many seeds have an advantage, and the p-value."""
    if not advantage.any():
        return "", ""
    return f"{(advantage > 0).sum()} of {len(advantage)}", f"{wilcoxon(advantage).pvalue:.2g}"


if __name__ == "__main__":
    main()
