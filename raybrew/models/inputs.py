"""What a model reads: its tokenizer, padding, the most positions, and a first forward pass.

padding token   the tokenizer's, else the one that the model knows, else what ends a text
padding side    right: positions, class tokens first and causal attention count from the left;
                left for models that read their answer at the last place of a batch
special tokens  a text that spells one out is read as text by models that count them
positions       as many tokens as the model's table of positions has rows, if it has one:
                BERT 0 … n - 1, RoBERTa pad + 1 … n - 1, BART 2 … n + 1; relative positions (T5,
                DeBERTa-v3, XLNet) and rotary ones (Llama, ModernBERT) have no table
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from tokenizers import normalizers
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from raybrew.data.split import Padding
from raybrew.errors import ConfigError
from raybrew.models.pretrained import (
    first_line,
    meta_model,
    own_generator,
    quiet_transformers,
    random_model,
    runs_own_code,
)
from raybrew.tasks.causal_lm import num_tokens
from raybrew.tasks.task_type import Layout

LAST_PLACE = frozenset({"xlnet"})
"""Types of models of transformers that read a text's class at the last place of a batch."""

READ_PADDING = frozenset(
    {"canine", "convbert", "fnet", "funnel", "mobilebert", "nystromformer", "yoso"}
)
"""Types of models of transformers that mix neighbouring places without looking at the mask."""

RESIZE = (
    "save the tokenizer that the model was trained with, or resize its embedding "
    "(model.resize_token_embeddings(len(tokenizer))) and save it again"
)
"""What to do about a model that is finished."""

_POSITIONS = re.compile(r"(^|_)(wpe|pos|positions?)(_|$)")
"""What tables of positions are called: position_embeddings, embed_positions, wpe, pos_encoding."""
_TOKENS = 16
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def fit_tokenizer(
    tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, what: str, *, custom: bool
) -> None:
    """Make a tokenizer and a configuration agree on padding and special tokens, in place.

    A tokenizer that is saved afterwards encodes and pads elsewhere as it did here.

    Args:
        tokenizer: of the model.
        config: of the model.
        what: field of the job that gave the tokenizer, for messages.
        custom: whether the model's class is the user's. Of it, and of one that came with the
            model's files, only the tokenizer says on which side to pad.

    Raises:
        ConfigError: no token can fill examples up.
    """
    if tokenizer.pad_token_id is None:
        token = _filling_token(tokenizer, config)
        if token is None:
            raise ConfigError(
                f"{what}: expected a tokenizer with a padding token, or one that ends a text, got "
                f"{type(tokenizer).__name__} without; set its pad_token and save it again"
            )
        tokenizer.pad_token = token
    set_padding_token(config, int(str(tokenizer.pad_token_id)))
    if not (custom or runs_own_code(config)):
        tokenizer.padding_side = "left" if config.model_type in LAST_PLACE else "right"
    if config.is_encoder_decoder:
        _spell_out_ends(tokenizer)
    tokenizer.init_kwargs |= {  # what is saved
        "padding_side": tokenizer.padding_side,
        "split_special_tokens": tokenizer.split_special_tokens,
    }


def set_padding_token(config: PreTrainedConfig, token_id: int) -> None:
    """Make a model treat this token as padding: it looks for the last token that isn't."""
    for part in (config, config.get_text_config()):
        part.pad_token_id = token_id


def padding_of(
    tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, layout: Layout
) -> Padding:
    """Return how batches of a model are padded.

    Args:
        tokenizer: after `fit_tokenizer`.
        config: of the model.
        layout: of the task's logits. Those of tokens are no class at the last place, and their
            positions count from the left.
    """
    left = tokenizer.padding_side == "left" and layout == "example"
    return Padding(
        int(str(tokenizer.pad_token_id)),
        "left" if left else "right",
        is_read=config.model_type in READ_PADDING,
    )


def _spell_out_ends(tokenizer: PreTrainedTokenizerBase) -> None:
    """Make the end token be read as text, letter by letter, where a text holds it.

    An encoder-decoder reads its answer at the token that ends a text; transformers' classes refuse
    batches of texts that have different numbers of it.
    """
    tokenizer.split_special_tokens = True
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or tokenizer.eos_token is None:
        return
    # A vocabulary of pieces that has the token finds it in a text all the same.
    end = str(tokenizer.eos_token)
    spelled = normalizers.Replace(end, f"{end[0]} {end[1:]}")
    own = [] if backend.normalizer is None else [backend.normalizer]
    backend.normalizer = normalizers.Sequence([spelled, *own])


def _filling_token(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> str | None:
    known: Any = getattr(config.get_text_config(), "pad_token_id", None)
    # A token that is part of texts would no longer be one.
    if known in tokenizer.added_tokens_decoder:
        return str(tokenizer.convert_ids_to_tokens(known))
    ends: Any = tokenizer("a")["input_ids"]
    # A model finds the end of a text by the first padding token: none may belong to the text.
    for name in ("eos_token", "unk_token", "bos_token") if tokenizer.eos_token else ():
        token = getattr(tokenizer, name)
        if token is not None and ends[-1:] != [tokenizer.convert_tokens_to_ids(token)]:
            return token
    return None


def trained_positions(config: PreTrainedConfig) -> int | None:
    """Return how many positions a model was made for; None where its configuration says none."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    # XLNet writes -1: any length.
    return positions if isinstance(positions, int) and positions > 0 else None


def enough_positions(config: PreTrainedConfig, length: int) -> bool:
    """Return whether a text of `length` tokens surely fits, by the configuration alone."""
    positions = trained_positions(config)
    # Models reserve a few rows of their table, never half of it.
    return positions is None or length <= positions // 2


def most_positions(model: nn.Module) -> int | None:
    """Return the most tokens of an input; None where no table of positions limits it.

    Args:
        model: with a configuration; weights aren't looked at.
    """
    config = model.config
    assert isinstance(config, PreTrainedConfig), "a model of transformers has a configuration"
    positions = trained_positions(config)
    if positions is None:
        return None
    limits = [
        min(positions, len(table) - first)
        for table, first in _tables(model)
        # Smaller ones are of something else, such as distances.
        if table.dim() == 2 and len(table) >= positions
    ]
    return min(limits, default=None)


def _tables(model: nn.Module) -> Iterator[tuple[Tensor, int]]:
    """Yield each table of positions with the row of a text's first token."""
    for name, module in model.named_modules():
        weight: object = getattr(module, "weight", None)
        # I-BERT has a class of embeddings of its own, with the same attributes.
        if not (isinstance(weight, Tensor) and hasattr(module, "padding_idx")):
            continue
        if _POSITIONS.search(name.rpartition(".")[2]):
            padding: Any = module.padding_idx
            # Padding has a row of its own, and positions begin behind it.
            yield weight, getattr(module, "offset", 0) if padding is None else padding + 1
    for name, buffer in model.named_buffers():
        # Not the numbers of the positions themselves.
        if _POSITIONS.search(name.rpartition(".")[2]) and buffer.is_floating_point():
            yield buffer, 0


def check_vocabulary(
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    what: str,
    advice: str = RESIZE,
) -> None:
    """Refuse a tokenizer with tokens that the model's embedding has no row for.

    Args:
        config: of the model.
        tokenizer: that encodes for it.
        what: the model in the job, for messages.
        advice: what to do.

    Raises:
        ConfigError: there is such a token.
    """
    # Models that read characters have no vocabulary.
    rows: int | None = getattr(config.get_text_config(), "vocab_size", None)
    needed = num_tokens(tokenizer)
    if rows is not None and needed > rows:
        raise ConfigError(
            f"{what}: expected a model that knows all {needed} tokens of its tokenizer, got "
            f"vocab_size {rows}; {advice}"
        )


def check_runs(
    model_class: Any,
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    what: str,
) -> None:
    """Refuse a model that can be built and can't read a batch.

    Args:
        model_class: transformers' class for models with the head of a task type, or the user's.
        config: of the model.
        tokenizer: that encodes for it.
        what: the model in the job, for messages.

    Raises:
        ConfigError: its first forward pass fails.
    """
    model = meta_model(model_class, config, what)
    batch = _batch(tokenizer, min(_TOKENS, most_positions(model) or _TOKENS))
    try:
        # The only attention that doesn't look at the mask's values, which meta tensors lack.
        model.set_attn_implementation("eager")
        _run(model, {name: tensor.to("meta") for name, tensor in batch.items()})
        return
    except Exception:
        pass  # also of sound models that look at values: run those with weights
    try:
        with own_generator(0):
            _run(random_model(model_class, config), batch)
    except Exception as error:  # of any class: it comes from the model's own code
        raise ConfigError(
            f"{what}: expected a model that reads texts as they are encoded for it, got a "
            f"{type(model).__name__} whose first forward pass fails: {first_line(error)}; change "
            "the sizes in its configuration that don't fit each other"
        ) from error


def _batch(tokenizer: PreTrainedTokenizerBase, length: int) -> Mapping[str, Tensor]:
    encoded = tokenizer(
        ["a " * length] * 2,
        truncation=True,
        padding="max_length",
        max_length=length,
        return_tensors="pt",
    )
    return {name: encoded[name] for name in _INPUTS if name in encoded}


@torch.no_grad()
def _run(model: Any, batch: Mapping[str, Tensor]) -> None:
    with quiet_transformers():
        model.train()(**batch)
