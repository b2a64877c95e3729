"""Tiny configurations of many families, each with what is particular to it."""

from collections.abc import Mapping
from typing import Any

import transformers
from transformers import PreTrainedConfig

VOCABULARY = 60
SIZES: Mapping[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
_RELATIVE = {
    **SIZES,
    "relative_attention": True,
    "position_buckets": 16,
    "pos_att_type": ["p2c", "c2p"],
    "pooler_hidden_size": 32,
    "position_biased_input": False,
}
_GROUPED = {**SIZES, "num_key_value_heads": 2}

FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "Bert": SIZES,
    "Roberta": SIZES,
    "Camembert": SIZES,
    "XLMRoberta": SIZES,
    "Data2VecText": SIZES,
    "IBert": SIZES,
    "Esm": {**SIZES, "position_embedding_type": "absolute"},
    "MPNet": SIZES,
    "Electra": {**SIZES, "embedding_size": 16},
    "DistilBert": {
        "dim": 32,
        "n_layers": 4,
        "n_heads": 2,
        "hidden_dim": 64,
        "max_position_embeddings": 64,
    },
    "DebertaV2": _RELATIVE,
    "Longformer": {**SIZES, "attention_window": [4, 4, 8, 8], "type_vocab_size": 1},
    "MobileBert": {
        **SIZES,
        "embedding_size": 16,
        "intra_bottleneck_size": 16,
        "true_hidden_size": 16,
    },
    "SqueezeBert": {**SIZES, "embedding_size": 32},
    "Funnel": {"d_model": 32, "n_head": 2, "d_head": 16, "d_inner": 64, "block_sizes": [1, 1, 1]},
    "BigBird": {**SIZES, "block_size": 8, "num_random_blocks": 2},
    "XLNet": {"d_model": 32, "n_layer": 4, "n_head": 2, "d_inner": 64},
    "ModernBert": {**SIZES, "local_attention": 8},
    "GPT2": {"n_embd": 32, "n_layer": 4, "n_head": 2, "n_positions": 64},
    "OPT": {
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "ffn_dim": 64,
        "word_embed_proj_dim": 32,
        "max_position_embeddings": 64,
    },
    "CTRL": {"n_embd": 32, "n_layer": 4, "n_head": 2, "dff": 64, "n_positions": 64},
    "Llama": _GROUPED,
    "Qwen3": {**_GROUPED, "head_dim": 16},
    "T5": {
        "d_model": 32,
        "d_kv": 16,
        "d_ff": 64,
        "num_layers": 4,
        "num_heads": 2,
        "decoder_start_token_id": 0,
        "eos_token_id": 3,
    },
    "Bart": {
        "d_model": 32,
        "encoder_layers": 4,
        "decoder_layers": 4,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "max_position_embeddings": 64,
        "eos_token_id": 3,
    },
    "XLM": {"emb_dim": 32, "n_layers": 4, "n_heads": 2, "max_position_embeddings": 64},
    "RoFormer": SIZES,
    "FNet": {name: size for name, size in SIZES.items() if name != "num_attention_heads"},
    "RemBert": {**SIZES, "input_embedding_size": 16, "output_embedding_size": 16},
}
"""By name of the class without `Config`."""


def family_config(family: str, **changes: Any) -> PreTrainedConfig:
    """Return a tiny configuration of a family."""
    values = {"pad_token_id": 0, **FAMILIES[family], **changes}
    return getattr(transformers, f"{family}Config")(vocab_size=VOCABULARY, **values)
