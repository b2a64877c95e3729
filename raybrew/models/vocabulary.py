"""Whether a model's embedding has a row for each token of its tokenizer."""

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from raybrew.errors import ConfigError

__all__ = ["RESIZE", "check_vocabulary", "num_tokens"]

RESIZE = (
    "save the tokenizer that the model was trained with, or resize its embedding "
    "(model.resize_token_embeddings(len(tokenizer))) and save it again"
)
"""What to do about a model that is finished."""


def num_tokens(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many rows of an embedding a tokenizer needs; ids may have gaps."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def check_vocabulary(
    config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, what: str, advice: str
) -> None:
    """Refuse a tokenizer with tokens that the model has no row for.

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
