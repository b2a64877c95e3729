"""How many tokens a model reads at most."""

from transformers import PreTrainedConfig

__all__ = ["most_positions"]


def most_positions(config: PreTrainedConfig) -> int | None:
    """Return the most tokens of an input; None where there is no limit, or none is said.

    Args:
        config: of the model.
    """
    most = getattr(config, "max_position_embeddings", None)
    if not isinstance(most, int) or most <= 0:  # XLNet writes -1: any length
        return None
    # RoBERTa counts positions from the padding id on.
    reserved = (config.pad_token_id or 0) + 1 if "roberta" in config.model_type else 0
    return most - reserved
