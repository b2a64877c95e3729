"""What a model and its tokenizer have to agree on before texts reach the model.

padding token   the tokenizer's, else the one that the model knows, else what ends a text
padding side    right: positions, class tokens first and causal attention count from the left;
left for models that read their answer at the last place of a batch
special tokens  a text that spells one out is read as text by models that count them
"""

from typing import Any

from tokenizers import normalizers
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from raybrew.data.padding import Padding
from raybrew.errors import ConfigError
from raybrew.kinds import Layout

__all__ = ["fit_tokenizer", "padding_of", "set_padding_token"]

LAST_PLACE = frozenset({"xlnet"})
"""Types of models of transformers that read a text's class at the last place of a batch."""

READ_PADDING = frozenset(
    {"canine", "convbert", "fnet", "funnel", "mobilebert", "nystromformer", "yoso"}
)
"""Types of models of transformers that mix neighbouring places without looking at the mask."""


def fit_tokenizer(
    tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, what: str, *, own_code: bool
) -> None:
    """Have a tokenizer and a configuration agree on padding and special tokens, in place.

    A tokenizer that is saved afterwards encodes and pads elsewhere as it did here.

    Args:
        tokenizer: of the model.
        config: of the model.
        what: field of the job that gave the tokenizer, for messages.
        own_code: whether the model's class isn't transformers' own, so that only its tokenizer
            says on which side to pad.

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
    if not own_code:
        tokenizer.padding_side = "left" if config.model_type in LAST_PLACE else "right"
    if config.is_encoder_decoder:
        _spell_out_ends(tokenizer)
    tokenizer.init_kwargs |= {  # what is saved
        "padding_side": tokenizer.padding_side,
        "split_special_tokens": tokenizer.split_special_tokens,
    }


def set_padding_token(config: PreTrainedConfig, token_id: int) -> None:
    """Have a model take this token for padding: it looks for the last token that isn't."""
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
    """Have what ends a text, where a text holds it, be read as text, letter by letter.

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
