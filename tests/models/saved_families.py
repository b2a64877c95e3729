"""A tiny model of each family with a tokenizer in its form; its random weights have opinions."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, PreTrainedTokenizerFast

from raybrew.models.pretrained import quiet_transformers

WORDS = [f"w{n}" for n in range(40)]
_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
_DECODER = {**_SIZES, "num_key_value_heads": 2, "head_dim": 16}
_T5 = {"d_model": 32, "d_ff": 64, "num_layers": 2, "num_heads": 2, "d_kv": 16}
_BART = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("first", _SIZES),
    "roberta": ("first", {**_SIZES, "max_position_embeddings": 66, "type_vocab_size": 1}),
    "distilbert": ("first", {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}),
    "albert": ("first", {**_SIZES, "embedding_size": 16}),
    "electra": ("first", {**_SIZES, "embedding_size": 16}),
    "deberta-v2": (
        "first",
        {**_SIZES, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    ),
    "modernbert": ("first", {**_SIZES, "local_attention": 8}),
    "mpnet": ("first", _SIZES),
    "xlm-roberta": ("first", {**_SIZES, "max_position_embeddings": 66, "type_vocab_size": 1}),
    "xlnet": ("last", {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64}),
    "gpt2": ("none", {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}),
    "llama": ("none", _DECODER),
    "qwen2": ("none", _DECODER),
    "mistral": ("none", _DECODER),
    "gemma": ("none", _DECODER),
    "opt": ("none", {**_SIZES, "ffn_dim": 64, "word_embed_proj_dim": 32}),
    "bloom": ("none", {"hidden_size": 32, "n_layer": 2, "n_head": 2}),
    "t5": ("eos", {**_T5, "decoder_start_token_id": 0}),
    "mt5": ("eos", {**_T5, "decoder_start_token_id": 0}),
    "bart": ("eos", {**_BART, "decoder_start_token_id": 3, "forced_eos_token_id": None}),
    "convbert": ("first", {**_SIZES, "embedding_size": 16}),
    "fnet": ("first", _SIZES),
}
"""By type of model: the form of its texts (where the class token is, or what ends them), sizes."""

_SPECIAL = ["<pad>", "<unk>", "<s>", "</s>", "<cls>", "<sep>", "<mask>"]


def family_tokenizer(form: str, **options: Any) -> PreTrainedTokenizerFast:
    """Return a tokenizer of one token a word; a causal model's has no padding token."""
    vocabulary = {word: n for n, word in enumerate([*_SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    single = {"first": "<cls> $A <sep>", "last": "$A <sep> <cls>", "eos": "$A </s>"}
    pair = {
        "first": "<cls> $A <sep> $B <sep>",
        "last": "$A <sep> $B <sep> <cls>",
        "eos": "$A $B </s>",
    }
    if form in single:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single[form],
            pair=pair[form],
            special_tokens=[("</s>", 3), ("<cls>", 4), ("<sep>", 5)],
        )
    values = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": None if form == "none" else "<pad>",
        "padding_side": "left" if form in ("last", "none") else "right",
        "model_input_names": ["input_ids", "attention_mask"],
    }
    if form in ("first", "last"):
        values |= {"cls_token": "<cls>", "sep_token": "<sep>", "mask_token": "<mask>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{**values, **options})


def save_family(folder: Path, family: str, auto_class: Any, **options: Any) -> str:
    """Save a model of a family with its tokenizer.

    Args:
        folder: where.
        family: a key of `FAMILIES`.
        auto_class: transformers' class of models with a head.
        options: of its tokenizer.
    """
    form, sizes = FAMILIES[family]
    tokenizer = family_tokenizer(form, **options)
    special = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": 2, "eos_token_id": 3}
    config = AutoConfig.for_model(family, vocab_size=len(tokenizer), **special, **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = auto_class.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, 0.2)
    with quiet_transformers():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(str(folder))
    return str(folder)
