"""Reads configurations, tokenizers and weights that transformers saved, in a folder or on the hub.

Each reader takes `what`, the field of the job that gives the path, and turns every way in which a
path can be wrong into one `ConfigError` that names this field.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from huggingface_hub.utils import logging as hub_logging
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import TRANSFORMERS_DYNAMIC_MODULE_NAME

import raybrew.models.bigru  # noqa: F401  registers its classes with transformers
from raybrew.config import Teacher
from raybrew.config.paths import locate
from raybrew.config.section import held_by
from raybrew.data.sources import hub_in_reach
from raybrew.errors import ConfigError

WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin")
BUILD_ERRORS = (
    StrictDataclassError,
    ValueError,
    TypeError,
    RuntimeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    ImportError,
)
"""What transformers raises on values that make no model."""
_READ_ERRORS = (OSError, SafetensorError, *BUILD_ERRORS, UnpicklingError, EOFError)
"""And on files; PyTorch raises the last two on a pickle that holds code, which is never run."""


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers and the hub from printing load reports and bars; errors still show."""
    verbosity, hub_verbosity = transformers_logging.get_verbosity(), hub_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    hub_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        hub_logging.set_verbosity(hub_verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def read_config(path: str, what: str, *, trust: bool = False) -> PreTrainedConfig:
    """Read a model's configuration from a folder or the hub.

    Args:
        path: Folder that `save_pretrained` wrote, or a hub id.
        what: Field of the job that gave the path, for messages.
        trust: Whether code that comes with the files may run; see `runs_own_code`.

    Raises:
        ConfigError: The folder is missing, has no config.json, or can't be read.
    """
    source = locate(path, what, ("config.json",), "a config.json")
    return _read(AutoConfig, source, what, "a model configuration", trust)


def architecture_of(config: PreTrainedConfig, path: str) -> str:
    """Return the name of the class that wrote a folder; empty where none is named.

    Raises:
        ConfigError: What config.json says of it is no list of names.
    """
    named: object = config.architectures or [""]
    if not isinstance(named, (list, tuple)) or not isinstance(named[0], str):
        raise ConfigError(
            f"{path}: expected `architectures` of config.json to be a list of classes' names, "
            f"got {named!r}"
        )
    return named[0]


def runs_own_code(config: PreTrainedConfig) -> bool:
    """Return whether a configuration is of a class that came with the model's files.

    Only a reader with `trust` makes one: its model's class comes from there too.
    """
    return type(config).__module__.startswith(TRANSFORMERS_DYNAMIC_MODULE_NAME)


def read_tokenizer(path: str, what: str, *, trust: bool = False) -> PreTrainedTokenizerBase:
    """Read a tokenizer from a folder or the hub.

    Args:
        path: Folder that `save_pretrained` wrote, or a hub id.
        what: Field of the job that gave the path, for messages.
        trust: Whether code that comes with the files may run.

    Raises:
        ConfigError: The folder is missing, has no tokenizer, or it can't be read.
    """
    # Only transformers knows in which files a tokenizer is.
    source = locate(path, what, ("*",), "a tokenizer")
    among = f" among {held_by(Path(source))}" if Path(source).is_dir() else ""
    noun = f"a tokenizer{among}"
    tokenizer: PreTrainedTokenizerBase = _read(AutoTokenizer, source, what, noun, trust)
    if _has_no_vocabulary(tokenizer):
        raise ConfigError(
            f"{what}: expected {noun} at {path!r}, got none: without one transformers makes a "
            f"{type(tokenizer).__name__} that knows only special tokens; save the model's "
            "tokenizer there"
        )
    return tokenizer


def _has_no_vocabulary(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether transformers made up a tokenizer whose files are missing."""
    if not tokenizer.vocab_files_names:  # its tokens are bytes or characters
        return False
    own = tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens)
    try:
        made_up = type(tokenizer)().get_vocab().keys()
    except (OSError, *BUILD_ERRORS):  # a class that can't be made without files
        made_up = set[str]()
    return own <= made_up


def load_model(
    model_class: Any,
    path: str,
    what: str,
    config: PreTrainedConfig,
    *,
    dtype: torch.dtype = torch.float32,
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Load weights into the model that `config` describes.

    A model isn't cast after it was loaded: transformers keeps in float32 what half precision
    would ruin, such as the frequencies of rotary positions.

    Weights that the folder lacks, or has in another size, are initialised from the CPU's global
    generator.

    Args:
        model_class: transformers' class for models with the head of a task type, or the user's.
        path: Folder that `save_pretrained` wrote, or a hub id.
        what: Field of the job that gave the path, for messages.
        config: Of the model.
        dtype: Of the weights, whatever that of the file is.

    Returns:
        The model and transformers' loading info (`missing_keys`, `mismatched_keys`, …).

    Raises:
        ConfigError: There are no weights, or they can't be read.
    """
    source = locate(path, what, WEIGHT_FILES, "weights (model.safetensors)")
    model, info = _read(
        model_class,
        source,
        what,
        "weights",
        runs_own_code(config),
        config=config,
        dtype=dtype,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    # transformers maps the file into memory: rewriting the file would change the live model, and
    # its unaligned addresses change the last bits of a product. A copy avoids both.
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = tensor.data.clone()
    return model, info


def random_model(model_class: Any, config: PreTrainedConfig) -> PreTrainedModel:
    """Build the model in float32 with random weights."""
    with quiet_transformers():
        # Code from the files runs only for a configuration that came with it.
        own = {"trust_remote_code": True} if runs_own_code(config) else {}
        return model_class.from_config(config, dtype=torch.float32, **own)


def meta_model(model_class: Any, config: PreTrainedConfig, what: str) -> PreTrainedModel:
    """Build the model without memory for its weights, to see names and shapes."""
    try:
        with torch.device("meta"), own_generator(0):
            return random_model(model_class, config)
    except Exception as error:  # of any class: the code of any model raises it
        raise ConfigError(
            f"{what}: expected a configuration that makes a {_noun(model_class)}, "
            f"got: {first_line(error)}"
        ) from error


@contextmanager
def own_generator(seed: int) -> Iterator[None]:
    """Draw the CPU's random numbers from a seeded generator, and put the global one back after."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def describe_names(names: Iterable[str], at_most: int = 8) -> str:
    """Return the first names, and how many more there are."""
    listed = sorted(names)
    more = len(listed) - at_most
    return ", ".join(listed[:at_most]) + (f" and {more} more" if more > 0 else "")


def first_line(error: Exception) -> str:
    """Return an error's first line, with its type where the message alone says too little."""
    lines = str(error).strip().splitlines() or [""]
    line = lines[0] if len(lines) == 1 else f"{lines[0].rstrip(':')}: {lines[1].strip()}"
    line = line if len(line) <= 300 else line[:297] + "…"
    return line if len(line) > 20 else f"{type(error).__name__}: {line}"


def _noun(model_class: Any) -> str:
    """Say what an auto class makes: AutoModelForTokenClassification, a model for it."""
    words = re.findall(r"[A-Z][a-z]+", model_class.__name__.removeprefix("AutoModelFor"))
    return f"model for {' '.join(words).lower()}"


def _read(auto: Any, source: str, what: str, noun: str, trust: bool, **options: Any) -> Any:
    offline = not Path(source).is_dir() and not hub_in_reach()
    try:
        with quiet_transformers():
            # False, not None: None asks on the terminal whether foreign code may run.
            return auto.from_pretrained(
                source, trust_remote_code=trust, local_files_only=offline, **options
            )
    except _READ_ERRORS as error:
        if offline:
            got = (
                "no such folder here, and as a hub id it isn't in the local cache while the hub "
                "is out of reach (offline); give a folder, or download it first"
            )
        elif not trust and "trust_remote_code" in str(error):
            got = (
                "a model that needs code of its own, which could do anything here; if you have "
                f"read it and trust it, set {_section(what)}trust_remote_code: true"
            )
        elif isinstance(error, (UnpicklingError, EOFError)):
            got = "a file that is damaged, or holds more than weights, which is never run"
        else:
            got = first_line(error) + _missing_package(error)
        raise ConfigError(f"{what}: expected {noun} at {source!r}, got: {got}") from error


def _missing_package(error: Exception) -> str:
    """Name the package that transformers, without it, takes another one for."""
    if "tiktoken" not in str(error) or find_spec("sentencepiece") is not None:
        return ""
    return " (a vocabulary of SentencePiece, *.model, needs the package sentencepiece)"


def _section(what: str) -> str:
    """Return the part of a field's name before its last point, with it."""
    section, point, _ = what.partition(" ")[0].rpartition(".")
    return section + point


@dataclass(frozen=True)
class ModelSource:
    """Where a model's files are, which field of the job gave them, and whether their code may run.

    Args:
        path: a folder or a hub id.
        field: of the job that gave it, for messages.
        trust: whether code that comes with it may run.
        name: of the teacher; the path of what is no teacher.
    """

    path: str
    field: str
    trust: bool
    name: str

    @staticmethod
    def of_teacher(teacher: Teacher) -> "ModelSource":
        """Return that of a teacher of the job."""
        field = f"teachers[{teacher.name}].model"
        return ModelSource(teacher.model_path, field, teacher.trust_remote_code, teacher.name)

    def config(self) -> PreTrainedConfig:
        """Read the configuration; see `read_config`."""
        return read_config(self.path, self.field, trust=self.trust)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Read the tokenizer; see `read_tokenizer`."""
        return read_tokenizer(self.path, self.field, trust=self.trust)
