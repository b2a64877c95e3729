"""A saved model as ONNX: exported, compared with PyTorch, quantised to int8, timed.

model ──► torch.export ──► model.onnx ──► onnxruntime ──► compared on texts: |Δ logits|
                               └──► dynamic quantisation ──► model_int8.onnx: same answers?
"""

import json
import logging
import re
import shutil
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from raybrew.data.sources import load_source
from raybrew.errors import ConfigError
from raybrew.evaluation.prediction_files import with_columns
from raybrew.evaluation.saved_models import SavedModel, open_model, saved_task
from raybrew.models.pretrained import first_line

TOLERANCE = 1e-3
"""Greatest difference of logits that counts as rounding, relative to the largest logit above 1."""
BATCHES = (1, 32)
"""Examples of a batch that is timed."""
_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_SAMPLES, _TIMED, _TIMED_LENGTH = 64, 10, 32

Batch = Mapping[str, Tensor]
Run = Callable[[Batch], list[np.ndarray]]


class ExportResult(NamedTuple):
    """What was exported, and how it compares with PyTorch.

    Args:
        folder: of the files.
        rows: by `pytorch`, `onnx` and `int8`: megabytes of 2²⁰ bytes; `max_difference` and
            `mean_difference` of the logits; `agreement`, the share of equal largest logits;
            `ms_batch_1` and `ms_batch_32`, of one batch on one thread.
        length: tokens of an example that is timed.
        texts: what the comparison read.
    """

    folder: str
    rows: dict[str, dict[str, float]]
    length: int
    texts: str


def export_onnx(
    model: str, output: str | Path | None = None, *, int8: bool = False, data: str | None = None
) -> ExportResult:
    """Export the model of one task.

    Args:
        model: folder of a student of one task, or of any model that transformers loads.
        output: folder to write; `onnx` in the model's if left out.
        int8: whether to write weights in int8 as well.
        data: file of texts to compare on; texts of random tokens if left out.

    Raises:
        ConfigError: a package is missing, the model can't be exported, or what was exported
            answers otherwise than PyTorch; then nothing is written.
    """
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"export: expected the packages {', '.join(_PACKAGES)}, got none of "
            f"{', '.join(missing)}; pip install 'raybrew[onnx]'"
        )
    target = Path(model, "onnx") if output is None else Path(output)
    if target.exists() and any(target.iterdir() if target.is_dir() else [target]):
        raise ConfigError(f"export: expected a new folder, got {target}, which exists (-o)")
    opened = open_model(model, with_columns(saved_task(model), model, None))
    exported = _Exported(opened)
    batches = exported.batches(_texts(opened, data))
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        rows = {"pytorch": exported.measure(exported.pytorch, _weights_mb(opened.hosted.model))}
        rows["onnx"] = exported.write(temporary / "model.onnx", batches)
        _check(model, rows["onnx"])
        if int8:
            rows["int8"] = exported.quantise(
                temporary / "model.onnx", temporary / "model_int8.onnx", batches
            )
        result = ExportResult(str(target), rows, exported.length, data or "texts of random tokens")
        _write_beside(Path(model), temporary, opened, result)
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return result


class _Exported:
    """A model that is run by PyTorch and by onnxruntime on the same batches."""

    def __init__(self, opened: SavedModel):
        self._opened = opened
        model = opened.hosted.model.to("cpu").eval()
        taken = signature(model.forward).parameters
        known = [n for n in opened.tokenizer.model_input_names if n in _INPUTS]
        self._names = [name for name in _INPUTS if name in known and name in taken]
        self._outputs = (
            ["start_logits", "end_logits"] if hasattr(model, "qa_outputs") else ["logits"]
        )
        self._module = _Logits(model, self._names, self._outputs)
        self._per_token = opened.kind.layout != "example"
        self.length = min(_TIMED_LENGTH, opened.task.max_length)

    @torch.inference_mode()
    def pytorch(self, batch: Batch) -> list[np.ndarray]:
        """Return the logits of each output."""
        found = self._module(*(batch[name] for name in self._names))
        return [each.numpy() for each in found]

    def batches(self, texts: Sequence[str]) -> list[Batch]:
        """Encode texts in batches of different sizes."""
        sizes, start, found = (1, 3, 8), 0, []
        while start < len(texts):
            size = sizes[len(found) % len(sizes)]
            found.append(self._encode(texts[start : start + size]))
            start += size
        return found

    def _encode(self, texts: Sequence[str], length: int | None = None) -> Batch:
        encoded = self._opened.tokenizer(
            list(texts),
            truncation=True,
            padding=True if length is None else "max_length",
            max_length=length or self._opened.task.max_length,
            return_tensors="pt",
        )
        return {name: encoded[name] for name in self._names}

    def write(self, path: Path, batches: Sequence[Batch]) -> dict[str, float]:
        """Export to a file, and compare it."""
        dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
        # Neither 1 nor a size of the model, which the export would take for constants.
        example = self._encode(["a b c d e f g", "a"])
        try:
            with _quiet(), torch.inference_mode():
                torch.onnx.export(
                    self._module,
                    tuple(example[name] for name in self._names),
                    path,
                    input_names=self._names,
                    output_names=self._outputs,
                    dynamic_shapes=(tuple(dims for _ in self._names),),
                    dynamo=True,
                    external_data=_weights_mb(self._module) > 1500,
                    verbose=False,
                )
        except Exception as error:  # of any class: it comes from the model's code or the exporter
            raise ConfigError(
                f"export: {type(self._opened.hosted.model).__name__} can't be exported to ONNX: "
                f"{_COLOURS.sub('', first_line(error))}"
            ) from error
        return self._compared(path, batches)

    def quantise(self, source: Path, path: Path, batches: Sequence[Batch]) -> dict[str, float]:
        """Write the weights of matrix products in int8, and compare."""
        from onnxruntime.quantization import QuantType, quantize_dynamic

        with _quiet():
            quantize_dynamic(source, path, weight_type=QuantType.QInt8)
        return self._compared(path, batches)

    def measure(self, run: Run, megabytes: float) -> dict[str, float]:
        """Time batches on one thread: the median of some runs."""
        row = {"megabytes": megabytes}
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for size in BATCHES:
                batch = self._encode(["a b c"] * size, self.length)
                times = [_seconds(run, batch) for _ in range(_TIMED + 2)][2:]
                row[f"ms_batch_{size}"] = 1e3 * float(np.median(times))
        finally:
            torch.set_num_threads(threads)
        return row

    def _compared(self, path: Path, batches: Sequence[Batch]) -> dict[str, float]:
        run = _session(path, self._outputs)
        differences, equal, largest = [], [], 1.0
        for batch in batches:
            for true, found in zip(self.pytorch(batch), run(batch), strict=True):
                if self._per_token:  # what models answer to padding means nothing
                    real = batch["attention_mask"].numpy() > 0
                    true, found = true[real], found[real]
                differences.append(np.abs(true - found).ravel())
                equal.append((self._answers(true) == self._answers(found)).ravel())
                largest = max(largest, float(np.abs(true).max()))
        every = np.concatenate(differences)
        return {
            **self.measure(
                run, sum(f.stat().st_size for f in path.parent.glob(f"{path.name}*")) / 2**20
            ),
            "max_difference": float(every.max()),
            "mean_difference": float(every.mean()),
            "largest_logit": largest,
            "agreement": float(np.concatenate(equal).mean()),
        }

    def _answers(self, logits: np.ndarray) -> np.ndarray:
        if self._opened.kind.name == "regression":
            return logits.round(1)
        if not self._opened.kind.exclusive:
            return np.asarray(logits > 0)
        return np.asarray(logits.argmax(-1))


class _Logits(nn.Module):
    """A model as a function of tensors: its logits alone."""

    def __init__(self, model: nn.Module, names: Sequence[str], outputs: Sequence[str]):
        super().__init__()
        self.model, self._names, self._outputs = model, names, outputs
        self._options = (
            {"use_cache": False} if "use_cache" in signature(model.forward).parameters else {}
        )

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        given: dict[str, Any] = dict(zip(self._names, inputs, strict=True))
        found = self.model(**given, **self._options)
        return tuple(getattr(found, name) for name in self._outputs)


def _session(path: Path, outputs: Sequence[str]) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    known = {each.name for each in session.get_inputs()}

    def run(batch: Batch) -> list[np.ndarray]:
        given = {name: tensor.numpy() for name, tensor in batch.items() if name in known}
        return [np.asarray(each) for each in session.run(list(outputs), given)]

    return run


def _check(model: str, row: Mapping[str, float]) -> None:
    """Refuse what answers otherwise than PyTorch does."""
    most = TOLERANCE * row["largest_logit"]
    if not row["max_difference"] <= most:
        raise ConfigError(
            f"export: expected logits of {model} within {most:.1e} of PyTorch's, got a difference "
            f"of {row['max_difference']:.1e}; nothing is written"
        )


def _texts(opened: SavedModel, data: str | None) -> list[str]:
    if data is not None:
        rows = load_source(data, "--data")
        texts = rows.select(range(min(len(rows), 4 * _SAMPLES)))[opened.task.text][:]
        return [" ".join(each) if isinstance(each, list) else str(each) for each in texts]
    generator = np.random.default_rng(0)
    vocabulary = len(opened.tokenizer)
    lengths = generator.integers(1, max(2, opened.task.max_length - 2), _SAMPLES)
    ids = [generator.integers(0, vocabulary, length).tolist() for length in lengths]
    return [str(opened.tokenizer.decode(each, skip_special_tokens=True)) or "a" for each in ids]


def _write_beside(model: Path, folder: Path, opened: SavedModel, result: ExportResult) -> None:
    opened.config.save_pretrained(folder)
    opened.tokenizer.save_pretrained(str(folder))
    for name in ("raybrew.json",):
        if (model / name).is_file():
            shutil.copy(model / name, folder / name)
    text = json.dumps(result._asdict(), indent=1)
    (folder / "export.json").write_text(text + "\n", encoding="utf-8")


def _weights_mb(model: nn.Module) -> float:
    return sum(each.numel() * each.element_size() for each in model.parameters()) / 2**20


def _seconds(run: Run, batch: Batch) -> float:
    begin = time.perf_counter()
    run(batch)
    return time.perf_counter() - begin


@contextmanager
def _quiet() -> Any:
    """Keep the exporter's warnings, which are about its own code, from the user."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
