"""`raybrew store ls | verify | prune`: look at a label store, check it, make it smaller."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from raybrew.errors import ConfigError

if TYPE_CHECKING:
    from raybrew.labels.contents import StoreStats
    from raybrew.labels.location import Location, StoredFile


DAMAGE_FOUND = 1

app = typer.Typer(help="Look at a label store, check it, make it smaller.", no_args_is_help=True)

Store = Annotated[
    str | None,
    typer.Argument(
        help="Its folder or URI; the default of labels.store if left out.", show_default=False
    ),
]


@app.command("ls")
def list_(
    store: Store = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
) -> None:
    """Show what a store holds, by teacher and signal."""
    with _opened(store) as location:
        from raybrew.data.files import to_json
        from raybrew.labels.contents import store_stats

        stats = store_stats(location)
        if as_json:
            print(to_json([asdict(one) for one in stats], indent=1))
        else:
            _show(location, stats)


@app.command()
def verify(store: Store = None) -> None:
    """Check every shard against its checksum; exit code 1 if one is damaged."""
    with _opened(store) as location:
        from rich.progress import Progress

        from raybrew.labels.contents import verify_store

        total = sum(file.nbytes for file in location.shards())
        with Progress(transient=True, disable=not sys.stderr.isatty()) as progress:
            bar = progress.add_task("checking", total=total)
            wrong = verify_store(location, lambda file: progress.advance(bar, file.nbytes))
        for line in wrong:
            print(line)
        print(f"{location.root}: {total:,} bytes of labels checked, {len(wrong)} files damaged")
        if wrong:
            print(
                "a run that needs their labels sets such files aside and computes them again; what "
                f"was set aside is deleted by raybrew store prune {location.root} --damaged, the "
                "others you may delete by hand"
            )
            raise typer.Exit(DAMAGE_FOUND)


@app.command()
def prune(
    store: Store = None,
    max_size: Annotated[
        str | None,
        typer.Option(help="Delete the labels least recently used until no more than this is left."),
    ] = None,
    teacher: Annotated[
        list[str] | None,
        typer.Option(help="Delete the labels of this teacher: a fingerprint, or its beginning."),
    ] = None,
    damaged: Annotated[bool, typer.Option(help="Delete what was set aside as damaged.")] = False,
    merge: Annotated[bool, typer.Option(help="Merge small shards into larger ones.")] = False,
    dry_run: Annotated[
        bool, typer.Option(help="Print what would be done, and do nothing.")
    ] = False,
) -> None:
    """Delete labels and leftovers, merge shards; runs may use the store meanwhile."""
    limit = None if max_size is None else _bytes(max_size)
    if limit is None and not (teacher or damaged or merge):
        raise ConfigError(
            "store prune: expected --max-size, --teacher, --damaged or --merge, got none"
        )
    with _opened(store) as location:
        from raybrew.labels.maintenance import find_teachers, plan_pruning

        files = plan_pruning(
            location,
            max_bytes=limit,
            teachers=find_teachers(location, teacher or ()),
            damaged=damaged,
        )
        for file in files if not dry_run else ():
            location.remove(file.path)
        _print_pruned(files, dry_run)
        if damaged:
            print(
                f"--damaged takes what was set aside; what wasn't yet is listed by "
                f"raybrew store verify {location.root}"
            )
        if merge:
            print(f"{'would merge' if dry_run else 'merged'} {_merge(location, dry_run)} shards")


@contextmanager
def _opened(store: str | None) -> Iterator["Location"]:
    """Open a store; what the system refuses is an error of raybrew's."""
    from raybrew.config import LabelConfig
    from raybrew.labels.contents import check_is_store
    from raybrew.labels.location import LocalLocation, label_errors
    from raybrew.labels.remote import StoreSpec, location_of

    if store is not None and not store.strip():
        raise ConfigError(f"label store: expected a folder or URI, got {store!r}")
    labels = LabelConfig() if store is None else LabelConfig(store=store)
    location = location_of(StoreSpec.of(labels))
    if isinstance(location, LocalLocation) and not location.local.is_dir():
        raise ConfigError(f"label store: expected a folder or URI, got {location.root}, no folder")
    with label_errors(location.root):
        check_is_store(location)
        yield location


def _bytes(text: str) -> int:
    from raybrew.config.section import as_bytes

    try:
        return as_bytes(text)
    except ValueError as error:
        raise ConfigError(f"--max-size: {error}") from None


def _merge(location: "Location", dry_run: bool) -> int:
    from raybrew.labels.maintenance import compact, count_compactable

    folders = sorted({file.folder for file in location.shards()})
    if dry_run:
        return sum(count_compactable(location, folder) for folder in folders)
    return sum(compact(location, folder, at_least=2) for folder in folders)


def _show(location: "Location", stats: Sequence["StoreStats"]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=location.root, title_justify="left")
    for name in ("teacher", "model", "signal"):
        table.add_column(name, overflow="fold")
    for name in ("labels", "bytes", "shards", "damaged", "last used"):
        table.add_column(name, justify="right")
    for one in stats:
        used = f"{datetime.fromtimestamp(one.used_s):%Y-%m-%d %H:%M}" if one.shards else ""
        counts = (one.labels, one.nbytes, one.shards, one.damaged)
        table.add_row(one.teacher, one.model, one.signal, *(f"{n:,}" for n in counts), used)
    table.add_section()
    sums = (sum(getattr(h, n) for h in stats) for n in ("labels", "nbytes", "shards", "damaged"))
    table.add_row("all", "", "", *(f"{n:,}" for n in sums), "")
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _print_pruned(files: Mapping["StoredFile", str], dry_run: bool) -> None:
    for file, reason in files.items():
        print(f"{reason:9s}  {file.nbytes:>15,}  {file.path}")
    total = sum(file.nbytes for file in files)
    print(f"{'would delete' if dry_run else 'deleted'} {len(files)} files, {total:,} bytes")
