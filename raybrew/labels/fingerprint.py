"""Which teacher gave an answer: a hash of all that its answers depend on besides the input.

Location doesn't matter: the same weights in another folder have the same fingerprint, so that
labels outlive moves, runs and machines.
"""

import json
from pathlib import Path

import xxhash

from raybrew.errors import ConfigError
from raybrew.paths import held_by

__all__ = ["model_fingerprint"]

# What a config says about names and history changes no logit.
_IRRELEVANT = {"_name_or_path", "transformers_version", "id2label", "label2id", "dtype"}
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_CHUNK_BYTES = 1 << 24
_HALF_PRECISION_LOADING = "2"
"""How weights become half precision; counted up when answers change.

1: the whole module was cast after loading. 2: transformers' own loading, which keeps some of it in
float32.
"""


def model_fingerprint(
    folder: str | Path, *, dtype: str, adaptor: str, own_code: bool = False
) -> str:
    """Hash the weights, the configuration, the precision and the adaptor of a teacher.

    Args:
        folder: a local folder as transformers writes it (a hub id resolved to its snapshot).
        dtype: precision that the teacher computes in.
        adaptor: name of what turns the model's outputs into logits.
        own_code: whether the folder's code makes the model, and so belongs to it.

    Returns:
        32 hexadecimal digits.

    Raises:
        ConfigError: the folder holds no weights.

    """
    folder = Path(folder)
    weights = sorted({path for pattern in _WEIGHTS for path in folder.glob(pattern)})
    if not weights:
        raise ConfigError(
            f"teacher {folder}: expected weights ({' or '.join(_WEIGHTS)}), got {held_by(folder)}"
        )
    digest = xxhash.xxh3_128()
    code = sorted(folder.glob("*.py")) if own_code else []
    for path in (*weights, *code):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    config = json.loads((folder / "config.json").read_text())
    kept = {key: value for key, value in config.items() if key not in _IRRELEVANT}
    precision = dtype if dtype == "float32" else f"{dtype}, loading {_HALF_PRECISION_LOADING}"
    digest.update(json.dumps([kept, precision, adaptor], sort_keys=True).encode())
    return digest.hexdigest()
