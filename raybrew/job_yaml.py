"""YAML as data: no duplicate keys, no code, the plain values of YAML 1.2, errors in one line."""

import re
from collections.abc import Hashable
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from raybrew.errors import ConfigError

__all__ = ["parse_yaml"]


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader without the surprises of YAML 1.1."""

    yaml_implicit_resolvers = {}  # noqa: RUF012  filled below, for this class alone

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        """Refuse a key that comes twice, of which PyYAML would keep the last."""
        if not isinstance(node, yaml.MappingNode):  # `!!map [1]`, which PyYAML refuses
            return super().construct_mapping(node, deep=deep)
        seen: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise ConstructorError(
                        None,
                        None,
                        f"the key {key.value!r} stands in line {seen[key.value]} already",
                        key.start_mark,
                    )
                seen[key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep=deep)

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """Refuse a value that isn't of its own tag, as `!!bool maybe`; PyYAML just breaks there."""
        try:
            return super().construct_object(node, deep=deep)
        except (LookupError, AttributeError, TypeError, ValueError):
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            got = repr(node.value) if isinstance(node, yaml.ScalarNode) else "a value"
            wrong = f"{got}, which is no {tag}"
            raise ConstructorError(None, None, wrong, node.start_mark) from None


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))"
        r"|\.(?:nan|NaN|NAN)",
        list("-+0123456789."),
    ),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first
    )


def parse_yaml(text: str, source: str) -> Any:
    """Return the value of one YAML document.

    Args:
        text: The document.
        source: Where it comes from, for messages.

    Raises:
        ConfigError: It isn't YAML, holds a key twice, or asks for more than data.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f" line {mark.line + 1}, column {mark.column + 1}:" if mark else ""
        raise ConfigError(f"{source}:{place} expected YAML, got: {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        got = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{source}: expected YAML, got: {got}") from None
