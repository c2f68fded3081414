"""Loads pretrained encoders and their tokenizers with the package transformers."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from torch import nn

from spark_hpo.errors import TrialError
from spark_hpo.train.built_in import check_package

_DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout")


def load_config(pretrained: str, *, dropout: float) -> Any:
    """Return the configuration of an encoder.

    Args:
        pretrained: the name of a model on the Hugging Face Hub, a folder, or the name of an installed Python
            package that contains a model.
        dropout: within the encoder.
    """
    config = _loaded("AutoConfig", pretrained)
    for name in _DROPOUTS:
        if hasattr(config, name):
            setattr(config, name, dropout)
    return config


def load_tokenizer(pretrained: str) -> Any:
    """Return the tokenizer of an encoder, which can pad. For the argument, see `load_config`."""
    tokenizer = _loaded("AutoTokenizer", pretrained)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_encoder(pretrained: str, config: Any, *, with_weights: bool) -> Any:
    """Return the encoder, in float32 and without its pooler. For `pretrained`, see `load_config`."""
    if with_weights:
        encoder = _loaded("AutoModel", pretrained, config=config)
    else:
        encoder = transformers().AutoModel.from_config(config)
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None  # its output is not used, so its weights would never get a gradient
    return encoder.float()


def freeze(encoder: Any, layers: int) -> None:
    """Stop the training of the embeddings and of the first layers; 0: train everything.

    Raises:
        TrialError: the encoder does not have as many layers.
    """
    count = encoder.config.num_hidden_layers
    if not 0 <= layers <= count:
        raise TrialError(f"the parameter frozen_layers must be between 0 and {count} (got {layers})")
    if not layers:
        return
    lists = [module for module in encoder.modules() if isinstance(module, nn.ModuleList)]
    stack = next(each for each in lists if len(each) == count)
    encoder.requires_grad_(False)
    stack[layers:].requires_grad_(True)


def transformers() -> Any:
    """Import the package transformers, without its progress bars.

    Raises:
        ConfigError: it is not installed.
    """
    check_package("text")
    import transformers

    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call] # missing there
    return transformers


def _loaded(kind: str, pretrained: str, **options: Any) -> Any:
    place = _found(pretrained)
    try:
        return getattr(transformers(), kind).from_pretrained(place, **options)
    except (OSError, ValueError) as exc:
        reason = str(exc).strip().splitlines()[0]
        raise TrialError(
            f"the parameter pretrained names {pretrained!r}, which cannot be loaded: {reason} It must be the "
            "name of a model on the Hugging Face Hub, a folder that all executors can read, or an installed "
            "package with a model"
        ) from exc


def _found(pretrained: str) -> str:
    """Return the folder of a model in an installed package; any other name stays as it is."""
    module = pretrained.replace("-", "_")
    if Path(pretrained).is_dir() or not module.isidentifier():
        return pretrained
    spec = importlib.util.find_spec(module)
    roots = spec.submodule_search_locations if spec else None
    configs = [path for root in roots or () for path in Path(root).rglob("config.json")]
    return str(min(configs, key=lambda path: len(path.parts)).parent) if configs else pretrained
