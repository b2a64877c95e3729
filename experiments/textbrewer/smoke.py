"""Stand-ins for what the hub has: the same jobs on made rows and tiny models, in seconds.

    hub id of a model     a model of the same class with 12 layers, 32 wide, random weights
    hub id of a data set  a few dozen made rows with the same columns, one file a split

Widths shrink, depths stay, so that every match of a job still has its layers. Scores mean nothing.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordPiece
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertForPreTraining,
    ElectraConfig,
    ElectraForPreTraining,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from experiments.data import made_whole
from experiments.textbrewer.published import BENCHMARKS, MODELS, Benchmark
from raybrew.data.sources import quiet_datasets
from raybrew.errors import ConfigError
from raybrew.models.pretrained import quiet_transformers

NUM_ROWS = 24
TRAINING = {
    "num_epochs": 1,
    "batch_size": 8,
    "eval_batch_size": 32,
    "num_threads": 1,
}
"""What a smoke run changes of the training besides models and data."""

_ENGLISH = "the river ran past a small town where no one knew why it was so cold and so clear"
_CHINESE = "河水流过一座小城没有人知道为什么它这样冷又这样清澈见底北京上海广州"
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class StandIns:
    """Models and data in a folder, made when they are asked for the first time.

    Args:
        folder: where they lie.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._makers: dict[str, Callable[[], Path]] = {
            hub_id: lambda name=name: self._model(name) for name, hub_id in MODELS.items()
        }
        for name, each in BENCHMARKS.items():
            sources = [each.task["train"], each.task["eval"], *each.further.values()]
            for number, source in enumerate(sources):
                self._makers[source] = lambda n=name, k=number: self._rows(n, k)
        for name, each in BENCHMARKS.items():
            for source in each.transfer:
                # Rows of another benchmark are that one's.
                self._makers.setdefault(source, lambda n=name: self._rows(n, 9))

    def of(self, name: str) -> str | None:
        """Return the path of what stands in for a hub id or a prepared file; None for others."""
        maker = self._makers.get(name)
        return None if maker is None else str(maker())

    def _model(self, name: str) -> Path:
        target = self._folder / "models" / name
        if not target.is_dir():
            with made_whole(target) as folder, quiet_transformers():
                tokenizer = _tokenizer()
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(0)
                    _tiny(name, len(tokenizer)).save_pretrained(folder)
                tokenizer.save_pretrained(str(folder))
        return target

    def _rows(self, benchmark: str, number: int) -> Path:
        target = self._folder / "data" / benchmark
        path = target / f"{number}.parquet"
        if not path.is_file():
            target.mkdir(parents=True, exist_ok=True)
            with quiet_datasets():
                _made_rows(BENCHMARKS[benchmark], benchmark, number).to_parquet(str(path))
        return path


def smoked(values: Mapping[str, Any], stand_ins: StandIns) -> dict[str, Any]:
    """Return a job with stand-ins for all that comes from the hub, on CPUs, for one short epoch.

    Raises:
        ConfigError: data without a stand-in.
    """
    changed = _replaced(dict(values), stand_ins)
    changed["training"] = {**changed["training"], **TRAINING}
    changed["tracking"] = {"log_every": 1, "progress": False}
    changed["scaling"] = {"num_workers": 1}
    for teacher in changed.get("teachers", ()):
        teacher["resources"] = {"CPU": 0.25}
    for task in changed["tasks"]:
        for source in (task["train"], task["eval"], *task.get("transfer", ())):
            if not Path(source).is_file():
                raise ConfigError(f"smoke: expected a stand-in for {source!r}, got none")
    return changed


def _replaced(value: Any, stand_ins: StandIns) -> Any:
    if isinstance(value, str):
        return stand_ins.of(value) or value
    if isinstance(value, Mapping):
        return {key: _replaced(each, stand_ins) for key, each in value.items()}
    if isinstance(value, list):
        return [_replaced(each, stand_ins) for each in value]
    return value


def _tiny(name: str, vocabulary: int) -> PreTrainedModel:
    """Return a model of the class that the hub has under this name, with random weights."""
    sizes: dict[str, Any] = {
        "vocab_size": vocabulary,
        "num_hidden_layers": 12,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 4,
    }
    if name == "electra-base":
        return ElectraForPreTraining(ElectraConfig(**sizes, embedding_size=32))
    if name == "electra-small":
        narrow = {**sizes, "hidden_size": 16, "intermediate_size": 32}
        return ElectraForPreTraining(ElectraConfig(**narrow, embedding_size=8))
    return BertForPreTraining(BertConfig(**sizes))


def _tokenizer() -> PreTrainedTokenizerFast:
    """BERT's form over the made rows' words and over single characters."""
    letters = sorted(set((_ENGLISH + _CHINESE).replace(" ", "")) | set("0123456789.?"))
    pieces = [*letters, *(f"##{letter}" for letter in letters), *_ENGLISH.split()]
    tokens = dict.fromkeys([*_SPECIAL, *pieces])
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()  # type: ignore[assignment]
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore[assignment]
    tokenizer.post_processor = TemplateProcessing(  # type: ignore[assignment]
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def _made_rows(benchmark: Benchmark, name: str, number: int) -> Dataset:
    """Return rows as the hub has them: the same columns, classes as numbers."""
    generator = np.random.default_rng([number, *name.encode()])
    chinese = name in ("xnli", "lcqmc", "cmrc2018", "drcd", "msra")
    texts = [_words(generator, chinese) for _ in range(NUM_ROWS)]
    joint = "" if chinese else " "
    task = benchmark.task
    if task["kind"] == "question-answering":
        return Dataset.from_list([_question(generator, each, joint) for each in texts])
    names = task["label_names"]
    if task["kind"] == "token-classification":
        tags = [generator.integers(0, len(names), len(each)).tolist() for each in texts]
        features = Features(
            {"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=names))}
        )
        return Dataset.from_dict({"tokens": texts, "ner_tags": tags}, features=features)
    columns = {task["text"]: [joint.join(each) for each in texts]}
    if "text_pair" in task:
        columns[task["text_pair"]] = [joint.join(each[::-1]) for each in texts]
    labels = {task["label"]: [row % len(names) for row in range(NUM_ROWS)]}
    return Dataset.from_dict(columns | labels)


def _words(generator: np.random.Generator, chinese: bool) -> list[str]:
    words = list(_CHINESE) if chinese else _ENGLISH.split()
    return [str(word) for word in generator.choice(words, generator.integers(5, 12))]


def _question(generator: np.random.Generator, words: list[str], joint: str) -> dict[str, Any]:
    first = int(generator.integers(0, len(words) - 2))
    answer = joint.join(words[first : first + 2])
    start = len(joint.join([*words[:first], ""]))
    return {
        "question": joint.join(words[:3]) + "?",
        "context": joint.join(words),
        "answers": {"text": [answer], "answer_start": [start]},
    }
