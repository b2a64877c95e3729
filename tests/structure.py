"""Counts what keeps the code base easy to move into: `make structure` prints the table.

tests/test_structure.py holds every count to its bound. Counted are the modules of `raybrew/` and
`experiments/`; words also in the docs and in the names and texts of tests.
"""

import ast
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
WORDS = re.compile(
    r"\b(said|told|anew|nobody|somebody|gone|withdrawn?|withdraws|befalls?|befell|askers?|sisters?"
    r"|desks?|tickets?|ledgers?|tally|gatherer|verdict|went_wrong|is_dumb"
    r"|LossPolicy|KnowledgeTerm|StepMaker)\b",
    re.IGNORECASE,
)
"""Words that a reader of the field has to decode; CONTRIBUTING says which to take."""


_WITH_OLD_NAMES = ("CHANGELOG.md", "tests/structure.py")


class Count(NamedTuple):
    """One line of the table.

    Args:
        what: is counted.
        found: how many there are.
        at_most: how many there may be; lower it with what is found, never raise it.
        aim: where it is to get.
    """

    what: str
    found: int
    at_most: int
    aim: int


class Module(NamedTuple):
    """A module of the package or of the experiments."""

    name: str
    path: Path
    tree: ast.Module


def modules() -> list[Module]:
    """Read every module."""
    return [
        Module(_name(path), path, ast.parse(path.read_text()))
        for package in ("raybrew", "experiments")
        for path in sorted((ROOT / package).rglob("*.py"))
    ]


def counts() -> list[Count]:
    """Return what is counted, with its bounds."""
    found = modules()
    entries = [each for each in (ROOT / "raybrew").iterdir() if each.name != "__pycache__"]
    lines = sum(len(each.path.read_text().splitlines()) for each in found if _in_package(each))
    nodes = [node for each in found for node in ast.walk(each.tree)]
    return [
        Count("entries at the top of raybrew/", len(entries), 20, 20),
        Count("modules of raybrew/ and experiments/", len(found), 185, 170),
        Count("lines of raybrew/", lines, 38_600, 27_000),
        Count("modules with a single importer", len(single_importers(found)), 34, 30),
        Count("dataclasses", sum(map(_is_dataclass, nodes)), 88, 70),
        Count("functions with 7 parameters or more", sum(map(_is_wide, nodes)), 6, 6),
        Count("names of files that occur twice", len(repeated_names(found)), 5, 5),
        Count("words that have to be decoded", sum(1 for _ in unwanted_words()), 0, 0),
    ]


def single_importers(found: list[Module]) -> dict[str, str]:
    """Return the modules that exactly one other module imports, with that module."""
    importers = importers_of(found)
    bodies = [each.name for each in found if not _is_frame(each)]
    return {name: next(iter(importers[name])) for name in bodies if len(importers[name]) == 1}


def importers_of(found: list[Module]) -> Mapping[str, set[str]]:
    """Return which modules import each module, inside functions too."""
    names = {each.name for each in found}
    importers: dict[str, set[str]] = defaultdict(set)
    for each in found:
        for target in _imported(each.tree, names) - {each.name}:
            importers[target].add(each.name)
    return importers


def repeated_names(found: list[Module]) -> list[str]:
    """Return the file names that occur more than once."""
    names = Counter(each.path.name for each in found if not _is_frame(each))
    return sorted(name for name, times in names.items() if times > 1)


def unwanted_words() -> Iterator[str]:
    """Yield each place of a word that has to be decoded, as path:line: word."""
    listed = subprocess.run(
        ["git", "ls-files", "*.py", "*.md", "*.yaml", "*.toml", "Makefile"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    for name in listed:
        path = ROOT / name
        if name in _WITH_OLD_NAMES or not path.exists():
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            for match in WORDS.finditer(line):
                yield f"{name}:{number}: {match.group()}"


def _name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _in_package(module: Module) -> bool:
    return module.name.split(".")[0] == "raybrew"


def _is_frame(module: Module) -> bool:
    return module.path.stem in ("__init__", "__main__")


def _imported(tree: ast.Module, names: set[str]) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            members = [f"{node.module}.{alias.name}" for alias in node.names]
            found.update(each if each in names else node.module for each in members)
    return found & names


def _is_dataclass(node: ast.AST) -> bool:
    return isinstance(node, ast.ClassDef) and any(
        "dataclass" in ast.unparse(each) for each in node.decorator_list
    )


def _is_wide(node: ast.AST) -> bool:
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return False
    arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
    return len([each for each in arguments if each.arg not in ("self", "cls")]) >= 7


def main() -> None:
    """Print the counts, and with a word of one on the command line what it is made of."""
    if "words" in sys.argv:
        print("\n".join(unwanted_words()))
    if "importers" in sys.argv:
        print("\n".join(f"{a} <- {b}" for a, b in single_importers(modules()).items()))
    table = Table("counted", "found", "at most", "aim")
    for each in counts():
        style = "bold" if each.found > each.at_most else ""
        table.add_row(each.what, *(f"{n:,}" for n in each[1:]), style=style)
    Console().print(table)


if __name__ == "__main__":
    main()
