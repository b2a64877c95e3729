"""Logits that the data has already, into the label store: from then on they are labels as any."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from raybrew.config import DistillJob
from raybrew.data.keys import distinct_keys
from raybrew.data.supplied import SuppliedLogits
from raybrew.errors import DataError
from raybrew.labels.logits import pack_rows
from raybrew.labels.manifest import write_manifest
from raybrew.labels.payload import Payload, Signal
from raybrew.labels.spec import StoreSpec
from raybrew.labels.store import LabelStore
from raybrew.preparation.prepared import PreparedTeacher
from raybrew.preparation.tables import Table

__all__ = ["store_supplied"]


def store_supplied(
    job: DistillJob, tables: Sequence[Table], teachers: Sequence[PreparedTeacher]
) -> None:
    """Write the columns that stand in for teachers into the store, what it has already excepted.

    Args:
        job: names the store.
        tables: of its tasks.
        teachers: of the job; those with a model are passed over.

    Raises:
        DataError: a value that the labels' precision can't hold; names the row.
        LabelError: they can't be written.
        StoreFullError: there is no room; nobody could compute them again.
    """
    columns = [teacher for teacher in teachers if teacher.spec is None]
    if not columns:
        return
    store = LabelStore(replace(StoreSpec.of(job.labels), on_full="stop"))
    for teacher in columns:
        name, table = teacher.teacher.name, tables[teacher.task]
        write_manifest(
            store.location,
            teacher.fingerprint,
            teacher=name,
            model=f"column {teacher.teacher.logits} of task {table.task.name}",
        )
        for side, rows in (("train", table.train), ("eval", table.eval)):
            for signal in teacher.signals if rows is not None else ():
                assert rows is not None
                logits = rows.supplied[name]
                payload = _payload(logits, signal, f"tasks[{table.task.name}].{side}", teacher)
                _append(store, teacher.fingerprint, signal, logits, payload)


def _payload(
    logits: SuppliedLogits, signal: Signal, what: str, teacher: PreparedTeacher
) -> Payload:
    payload, bad = pack_rows(torch.from_numpy(logits.values), logits.lengths, signal)
    if bad is not None:
        raise DataError(
            f"{what}: row {bad}: expected logits that {signal.dtype} can hold in "
            f"{teacher.teacher.logits!r}, got larger ones; choose another labels.dtype"
        )
    return payload


def _append(
    store: LabelStore, fingerprint: str, signal: Signal, logits: SuppliedLogits, payload: Payload
) -> None:
    target = store.signal(fingerprint, signal)
    first, _ = distinct_keys(logits.keys)
    missing = first[~target.contains(logits.keys[first])]
    target.append(logits.keys[missing], payload.take(missing))
    target.flush()
