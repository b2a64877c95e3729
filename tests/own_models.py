"""A model as a user brings it: no class of transformers', with a configuration of its own."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel


class BagConfig(PreTrainedConfig):
    model_type = "tests_bag"

    def __init__(self, vocab_size: int = 8, width: int = 12, **options: Any):
        super().__init__(**options)
        self.vocab_size, self.width = vocab_size, width


class Bag(PreTrainedModel):
    """Classes of a text from the mean of its words."""

    config_class = BagConfig

    def __init__(self, config: BagConfig):
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.width)
        self.out = nn.Linear(config.width, config.num_labels or 2)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding | nn.Linear):
            nn.init.normal_(module.weight, std=0.5)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> dict[str, Tensor]:
        mask = attention_mask[..., None].to(torch.float32)
        return {"scores": self.out((self.words(input_ids) * mask).sum(1) / mask.sum(1).clamp(1))}


class LoudBag(Bag):
    """Other code for the same weights."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> dict[str, Tensor]:
        return {"scores": 2 * super().forward(input_ids, attention_mask)["scores"]}


class NoModel:
    pass


def read_bag(batch: Any, outputs: Any) -> dict[str, Tensor]:
    return {"logits": outputs["scores"], "inputs_mask": batch["attention_mask"]}


class OneHeadBag(Bag):
    """Three classes, whatever its configuration says."""

    def __init__(self, config: BagConfig):
        super().__init__(config)
        self.out = nn.Linear(config.width, 3)
        self.post_init()
