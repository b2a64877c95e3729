"""A teacher's answers kept by content: each example is computed once, in whatever order it comes.

    batch ──► content keys ──► store ──► found
                                 └─► missing ──► teacher ──► appended

An answer is filed under the hash of its example and the teacher's fingerprint, so it serves every
epoch, step, match, task and later run. Neither the order of the examples nor the rest of the batch
is part of a key; where the padding isn't read, neither is that.
"""

import functools
import inspect
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor, nn

from raybrew.data.encoding import distinct_keys
from raybrew.data.payload import Payload, Signal, from_storage, to_storage
from raybrew.errors import DataError
from raybrew.labels.contents import write_manifest
from raybrew.labels.store import LabelStore, SignalStore
from raybrew.losses.match_loss import Axis, FeatureSizes, Ragged, pack, unpack
from raybrew.matches.capture import code_name
from raybrew.textbrewer.configurations import IntermediateMatch
from raybrew.textbrewer.distiller_utils import Results, match_features

Wanted = Mapping[Signal, tuple[Axis, ...]]
"""By signal, what each axis of the tensor after the first is."""

Asked = dict[Signal, tuple[str, int, Tensor]]
"""By signal its key in the results, its place there, and the student's tensor that it is for."""

_AXES: dict[tuple[str, int], tuple[Axis, ...]] = {
    ("logits", 2): ("hidden",),
    ("logits", 3): ("token", "hidden"),
    ("hidden", 2): ("hidden",),
    ("hidden", 3): ("token", "hidden"),
    ("attention", 3): ("token", "token"),
    ("attention", 4): ("head", "token", "token"),
}
_PLAIN = (bool, int, float, str, bytes, type(None))
_THIS_PROCESS = uuid.uuid4().hex


class LabelCache:
    """The labels of one teacher.

    Args:
        store: folder or URI of the store.
        fingerprint: of the teacher.
        teacher: its name, for people who look into the store.
        model: its class, for the same.

    Attributes:
        found: answers that were there.
    """

    def __init__(self, store: str, fingerprint: str, *, teacher: str, model: str):
        self._store, self._fingerprint = LabelStore(store), fingerprint
        self._signals: dict[Signal, SignalStore] = {}
        self.found = 0
        write_manifest(self._store.location, fingerprint, teacher=teacher, model=model)

    def tensors(
        self,
        batch: Any,
        real: Tensor,
        reads_padding: bool,
        wanted: Wanted,
        compute: Callable[[Tensor], Mapping[Signal, Tensor]],
    ) -> dict[Signal, Tensor]:
        """Return what the teacher answers to a batch, computing what is missing.

        Args:
            batch: what it reads of B examples.
            real: (B, L), nonzero at the tokens that are kept; all of them where padding is read.
            reads_padding: whether an answer depends on the padding.
            wanted: what is asked for.
            compute: int64 (n,), rows of the batch → their tensors, (n, …), by signal.

        Returns:
            By signal (B, …), 0 at tokens that aren't real, in host memory.

        Raises:
            LabelError: a label that can't be read or written.
        """
        keys = content_keys(batch, len(real), None if reads_padding else real)
        # Labels made with the padding are not those made without.
        keys, keep = keys ^ np.uint64(0 if reads_padding else 1), real.cpu() != 0
        stores = {signal: self._open(signal) for signal in wanted}
        there = np.logical_and.reduce([store.contains(keys) for store in stores.values()])
        self.found += int(there.sum())
        if not there.all():
            # Equal examples of a batch are computed once.
            first, _ = distinct_keys(keys[~there])
            rows = np.flatnonzero(~there)[first]
            answers = compute(torch.from_numpy(rows))
            for signal, store in stores.items():
                values, offsets = pack(answers[signal].cpu(), keep[rows], wanted[signal])
                payload = Payload(to_storage(values, signal.dtype), offsets.numpy())
                new = np.flatnonzero(~store.contains(keys[rows]))
                store.append(keys[rows][new], payload.take(new))
        return {
            signal: _padded(store, keys, keep, wanted[signal], signal.dtype)
            for signal, store in stores.items()
        }

    def flush(self) -> None:
        """Write what is not on disk yet."""
        for store in self._signals.values():
            store.flush()

    def _open(self, signal: Signal) -> SignalStore:
        if signal not in self._signals:
            self._signals[signal] = self._store.signal(self._fingerprint, signal)
        return self._signals[signal]


def _padded(
    store: SignalStore, keys: np.ndarray, real: Tensor, axes: tuple[Axis, ...], dtype: str
) -> Tensor:
    found, payload = store.read(keys)
    assert payload is not None, "what was missing has been computed"
    assert payload.offsets is not None, "labels of scripts are ragged"
    assert found.all(), "what was missing has been computed"
    offsets = torch.from_numpy(payload.offsets)
    ragged = Ragged(from_storage(payload.values, dtype).reshape(-1), offsets)
    row = int(real.sum(dim=1).argmax())
    tokens = int(real[row].sum()) ** axes.count("token")
    # There is one axis besides those of tokens, so its size follows from the length of a row.
    size = int(offsets[row + 1] - offsets[row]) // max(tokens, 1)
    return unpack(ragged, real, axes, FeatureSizes(hidden=size, heads=size))


def model_fingerprint(model: nn.Module) -> str:
    """Hash a model's weights, layers and config; 32 hexadecimal digits."""
    return _hash_of(model).hexdigest()


def teacher_fingerprint(
    model: nn.Module, adaptor: Callable[..., Any], arguments: Mapping[str, Any], precision: str
) -> str:
    """Hash all that a teacher's answer depends on besides the example.

    What can't be read from content, such as an object that an adaptor has closed over, counts as
    different in every process: its labels are computed again rather than mistaken for another's.

    Args:
        model: its weights, its layers and its class count.
        adaptor: what turns outputs into logits and features.
        arguments: given to every forward pass.
        precision: that the forward pass computes in.

    Returns:
        32 hexadecimal digits.
    """
    digest = _hash_of(model)
    digest.update(_content_of(adaptor).encode())
    digest.update(f"{_content_of(dict(arguments))}{precision}".encode())
    return digest.hexdigest()


def _hash_of(model: nn.Module) -> Any:
    digest = xxhash.xxh3_128()
    for name, value in model.state_dict().items():
        tensor = torch.as_tensor(value).detach().cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    config: Any = getattr(model, "config", None)
    text = config.to_json_string() if hasattr(config, "to_json_string") else ""
    digest.update(f"{code_name(type(model))}{model!r}{text}".encode())
    return digest


def _content_of(value: Any) -> str:
    """Describe a value, so that equal descriptions mean equal behaviour."""
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"({','.join(map(_content_of, value))})"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key!r}:{_content_of(each)}' for key, each in value.items())}}}"
    if isinstance(value, functools.partial):
        return f"partial{_content_of([value.func, value.args, value.keywords])}"
    if inspect.ismethod(value):
        return f"method{_content_of([value.__func__, value.__self__])}"
    if inspect.isfunction(value):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        given = [cells, value.__defaults__ or (), value.__kwdefaults__]
        return f"{code_name(value)}{_content_of(given)}"
    if inspect.isclass(value) or inspect.isbuiltin(value):
        return code_name(value)
    if callable(value) and hasattr(value, "__dict__") and not isinstance(value, nn.Module):
        return f"{code_name(type(value))}{_content_of(vars(value))}"
    return f"{type(value).__qualname__}@{id(value)}.{_THIS_PROCESS}"


def content_keys(batch: Any, size: int, mask: Tensor | None = None) -> np.ndarray:
    """Hash what a batch holds of each example.

    Args:
        batch: on any device.
        size: its examples.
        mask: (B, L), real tokens; what lies behind the last of them is left out of every field
            that has L places. None where the padding counts.

    Returns:
        uint64 (B, 2).

    Raises:
        DataError: a field whose content can't be read.
    """
    digests = [xxhash.xxh3_128() for _ in range(size)]
    for name, value in fields(batch):
        if isinstance(value, Tensor):
            _update(digests, name, value, mask)
        elif isinstance(value, _PLAIN):
            for digest in digests:
                digest.update(f"{name}={value!r}".encode())
        else:
            raise DataError(
                f"is_caching_logits: labels are kept by the content of a batch, expected tensors "
                f"or plain values in it, got a {type(value).__name__} at {name.lstrip('.')!r}; "
                "leave it out with a batch_postprocessor, or set is_caching_logits to False"
            )
    words = b"".join(digest.digest() for digest in digests)
    return np.frombuffer(words, np.uint64).reshape(size, 2)


def fields(batch: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what a batch holds, with a name for each."""
    if isinstance(batch, Mapping):
        for key in sorted(batch):
            yield from fields(batch[key], f"{name}.{key}")
    elif isinstance(batch, list | tuple):
        for number, each in enumerate(batch):
            yield from fields(each, f"{name}.{number}")
    else:
        yield name, batch


def has_rows(value: Any, size: int) -> bool:
    """Whether a value of a batch is a tensor with a row for each of `size` examples."""
    return isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == size


def _update(digests: list[Any], name: str, value: Tensor, mask: Tensor | None) -> None:
    size = len(digests)
    if not has_rows(value, size):
        whole = _bytes(value.reshape(1, -1))[0].tobytes()
        for digest in digests:
            digest.update(f"{name}:{value.dtype}{tuple(value.shape)}".encode() + whole)
        return
    rows = _bytes(value.reshape(size, -1))
    ends = np.full(size, rows.shape[1])
    shape = value.shape[1:]
    if mask is not None and value.dim() > 1 and shape[0] == mask.shape[1]:
        places = torch.arange(1, mask.shape[1] + 1, device=mask.device)
        lengths = ((mask != 0) * places).amax(dim=1).cpu().numpy()
        ends, shape = lengths * (rows.shape[1] // mask.shape[1]), shape[1:]
    header = f"{name}:{value.dtype}{tuple(shape)}".encode()
    for digest, row, end in zip(digests, rows, ends.tolist(), strict=True):
        digest.update(header)
        digest.update(row[:end].tobytes())


def batch_digest(batch: Any) -> str:
    """Hash the content of a batch; of a value whose content can't be read, its class."""
    digest = xxhash.xxh3_128()
    for name, value in fields(batch):
        if isinstance(value, Tensor):
            digest.update(f"{name}:{value.dtype}{tuple(value.shape)}".encode())
            digest.update(_bytes(value.reshape(1, -1)).tobytes())
        else:
            digest.update(
                f"{name}={value if isinstance(value, _PLAIN) else type(value)!r}".encode()
            )
    return digest.hexdigest()


def _bytes(rows: Tensor) -> np.ndarray:
    """Return the bytes of each row of a matrix, uint8 (n, bytes)."""
    return rows.detach().cpu().contiguous().view(torch.uint8).numpy()


def take_rows(batch: Any, rows: Tensor, size: int) -> Any:
    """Return some rows of a batch.

    Args:
        batch: tensors whose first axis is as long as the batch have a row for each example;
            whatever else it holds is of the whole batch.
        rows: int64 (n,).
        size: examples in the batch.
    """
    if isinstance(batch, Tensor):
        return batch[rows.to(batch.device)] if has_rows(batch, size) else batch
    if isinstance(batch, list | tuple):
        return tuple(take_rows(each, rows, size) for each in batch)
    if isinstance(batch, Mapping):
        return {key: take_rows(each, rows, size) for key, each in batch.items()}
    return batch


def asked_of(
    results_S: Results, logits: Sequence[Tensor], matches: Sequence[IntermediateMatch]
) -> Asked:
    """Return what is asked of a teacher: logits as the student's, and the layers of matches."""
    found: Asked = {}
    for number, own in enumerate(logits):
        tokens = ".tokens" if own.dim() == 3 else ""
        found[Signal(f"logits.{number}{tokens}", dtype=_kept_dtype(own))] = ("logits", number, own)
    for match in matches:
        own = match_features(results_S, match, "student")
        own = own if isinstance(own, Tensor) else own[0]
        for layer in match.spec.teacher_layers:
            signal = Signal(match.feature, (layer,), _kept_dtype(own))
            found[signal] = (match.feature, layer, own)
    return found


def _kept_dtype(tensor: Tensor) -> str:
    # Keeping labels changes no loss: what is computed in half precision is compared in float32.
    return "float64" if tensor.dtype == torch.float64 else "float32"


def axes_of(asked: tuple[str, int, Tensor]) -> tuple[Axis, ...]:
    """Return what the axes of a tensor that is asked for are, after the first."""
    key, _, own = asked
    return _AXES[key, own.dim()]


def all_tokens(asked: Asked) -> Tensor:
    """Return a mask of every token, (B, L)."""
    sizes = [own.shape[-2 if key != "attention" else -1] for key, _, own in asked.values()]
    tokens = ["token" in axes_of(each) for each in asked.values()]
    lengths = [size for size, has_tokens in zip(sizes, tokens, strict=True) if has_tokens]
    size = len(next(iter(asked.values()))[2])
    return torch.ones(size, max(lengths, default=1))


def mask_that_suffices(batch: Any, results_S: Results, asked: Asked) -> Tensor | None:
    """Return a batch's mask of real tokens, (B, L), if what is learnt reads no others."""
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    if mask is None or not has_rows(mask, size_of(results_S)) or mask.dim() != 2:
        return None
    logits = [own for key, _, own in asked.values() if key == "logits"]
    # As many classes as tokens: scores of tokens, as question answering has them.
    if any(own.dim() == 2 and own.shape[1] == mask.shape[1] for own in logits):
        return None
    masks = results_S.get("logits_mask", [None] * len(logits))
    read = [each for own, each in zip(logits, masks, strict=False) if own.dim() > 2]
    read += [results_S.get("inputs_mask")] * (len(asked) > len(logits))
    return mask if all(_is_within(each, mask) for each in read) else None


def _is_within(read: Tensor | None, real: Tensor) -> bool:
    if read is None or read.shape != real.shape:
        return False
    return not bool((read[real.to(read.device) == 0] != 0).any())


def size_of(results: Results) -> int:
    """Return the examples of a batch."""
    for key in ("logits", "hidden", "attention", "labels"):
        for each in results.get(key, ()):
            return len(each)
    return 0
