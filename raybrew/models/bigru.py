"""BiGRU: embeddings and a bidirectional GRU, as models of transformers.

    input_ids ──► word embeddings, normalised ──► GRU in both directions ──► Linear + tanh ──┐
    sequence classification: mean over real tokens ──► classifier ◄── hidden states ◄────────┤
    token classification:    each token ─────────────► classifier ◄──────────────────────────┘

Importing this module registers the classes with transformers' Auto classes. A saved folder names
no foreign code, so loading it elsewhere takes `import raybrew.models.bigru` and no
`trust_remote_code`.
"""

from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
    initialization,
)
from transformers.modeling_outputs import (
    BaseModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)


@strict
class BiGruConfig(PreTrainedConfig):
    """Sizes of a BiGRU; by default those of TextBrewer's paper with BERT-base's vocabulary."""

    model_type = "raybrew_bigru"

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 1
    hidden_dropout_prob: float | int = 0.1
    initializer_range: float = 0.02
    pad_token_id: int | None = 0


class BiGruPreTrainedModel(PreTrainedModel):
    """How BiGRUs are initialised."""

    config_class = BiGruConfig
    base_model_prefix = "bigru"

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.GRU):
            for name, parameter in module.named_parameters():
                if "weight_hh" in name:
                    initialization.orthogonal_(parameter)
                elif "weight" in name:
                    initialization.xavier_uniform_(parameter)
                else:
                    initialization.zeros_(parameter)


class BiGruModel(BiGruPreTrainedModel):
    """The trunk: from token ids to a vector for each token."""

    def __init__(self, config: BiGruConfig):
        super().__init__(config)
        size = config.hidden_size
        self.embeddings = nn.Embedding(config.vocab_size, size, padding_idx=config.pad_token_id)
        # Random embeddings are small; the GRU's gates want inputs of order one.
        self.norm = nn.LayerNorm(size)
        self.layers = nn.ModuleList(
            nn.GRU(size, size, batch_first=True, bidirectional=True)
            for _ in range(config.num_hidden_layers)
        )
        self.outputs = nn.ModuleList(
            nn.Linear(2 * size, size) for _ in range(config.num_hidden_layers)
        )
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the word embeddings."""
        return self.embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the word embeddings."""
        self.embeddings = value  # type: ignore[assignment]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        output_hidden_states: bool = False,
        **unused: Any,
    ) -> BaseModelOutput:
        """Run the trunk.

        Args:
            input_ids: int64 (b, L).
            attention_mask: (b, L), 1 = real token; padding is on the right.
            token_type_ids: ignored; the separator marks the texts of a pair.
            output_hidden_states: whether the layers' outputs are returned, embeddings first.
            unused: what else transformers' callers pass, such as `return_dict`.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        lengths = mask.sum(dim=1).clamp_min(1).cpu()
        hidden = self.dropout(self.norm(self.embeddings(input_ids)))
        states = [hidden]
        for layer, output in zip(self.layers, self.outputs, strict=True):
            packed = nn.utils.rnn.pack_padded_sequence(
                hidden, lengths, batch_first=True, enforce_sorted=False
            )
            unpacked, _ = nn.utils.rnn.pad_packed_sequence(
                layer(packed)[0], batch_first=True, total_length=input_ids.shape[1]
            )
            hidden = self.dropout(torch.tanh(output(unpacked)))
            states.append(hidden)
        return BaseModelOutput(
            last_hidden_state=hidden,  # type: ignore[arg-type]
            hidden_states=tuple(states) if output_hidden_states else None,  # type: ignore[arg-type]
        )


class _WithClassifier(BiGruPreTrainedModel):
    def __init__(self, config: BiGruConfig):
        super().__init__(config)
        self.num_labels = config.num_labels or 2
        self.bigru = BiGruModel(config)
        self.classifier = nn.Linear(config.hidden_size, self.num_labels)
        self.post_init()


class BiGruForSequenceClassification(_WithClassifier):
    """Classes of a text, from the mean of its tokens."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **options: Any
    ) -> SequenceClassifierOutput:
        """See `BiGruModel.forward`; the logits are (b, C)."""
        found = self.bigru(input_ids, attention_mask, **options)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        weights = mask.unsqueeze(-1).to(found.last_hidden_state.dtype)
        mean = (found.last_hidden_state * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1)
        return SequenceClassifierOutput(
            logits=self.classifier(mean), hidden_states=found.hidden_states
        )


class BiGruForTokenClassification(_WithClassifier):
    """Classes of each token."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **options: Any
    ) -> TokenClassifierOutput:
        """See `BiGruModel.forward`; the logits are (b, L, C)."""
        found = self.bigru(input_ids, attention_mask, **options)
        return TokenClassifierOutput(
            logits=self.classifier(found.last_hidden_state), hidden_states=found.hidden_states
        )


AutoConfig.register(BiGruConfig.model_type, BiGruConfig)
AutoModel.register(BiGruConfig, BiGruModel)
AutoModelForSequenceClassification.register(BiGruConfig, BiGruForSequenceClassification)
AutoModelForTokenClassification.register(BiGruConfig, BiGruForTokenClassification)
