"""HOCON as NanoMQ understands it: objects, lists and values, without anything from elsewhere."""

from functools import partial
import re
from typing import Final

from .model import FileError, FileProblem

type Node = dict[str, Node] | list[Node] | str | None
"""A value as it was written, or what holds such values."""

_DOTTED_KEY: Final = re.compile(r"^[ \t]*[\w\"-]+(\.[\w\"-]+)+[ \t]*[{=:]", re.MULTILINE)
_EXTENSION: Final = re.compile(r"\.(conf|json|properties)$")
_HALF_OF_A_PAIR: Final = re.compile("[\ud800-\udfff]")
_MAX_DOTTED_KEYS: Final = 300
"""Merging them takes time with the square of their number."""


def parse(text: str, key: str) -> tuple[Node, list[str]]:
    """Return what a HOCON text has under a key, and the names of the files that it includes, which are not read.

    Nothing of this host gets in: neither files nor environment variables. Raises FileError.
    """
    import hocon  # noqa: PLC0415 - in the executor, and only when a file is imported

    if len(_DOTTED_KEY.findall(text)) > _MAX_DOTTED_KEYS:
        raise FileError(FileProblem.UNREADABLE, f"more than {_MAX_DOTTED_KEYS} keys with dots")
    included: list[str] = []

    def read_file(path: str) -> str:
        included.append(_EXTENSION.sub("", path.rsplit("/", 1)[-1]))
        return ""

    def find_package(identifier: str, file: str, _including: str | None, _base: str | None) -> str:
        return f"{identifier}/{file}"

    def text_of(raw: str) -> str:
        if _HALF_OF_A_PAIR.search(raw):
            raise FileError(FileProblem.UNREADABLE, "a half of a surrogate pair, which is no character")
        return raw

    def plain(value: hocon.HoconValue | None) -> Node:
        match value:
            case hocon.HoconObject():
                return {text_of(name): plain(item) for name, item in value.fields.items()}
            case hocon.HoconArray():
                return [plain(item) for item in value.items]
            case hocon.HoconScalar(value_type="null") | None:
                return None
            case hocon.HoconScalar():
                return text_of(value.raw)

    read = partial(hocon.parse, text, base_dir="/", env={}, read_file=read_file, package_resolver=find_package)
    try:
        # Substitutions could take values from elsewhere, and multiply. Values of several words are unresolved, too.
        if not read(resolve_substitutions=False).is_resolved() and "${" in text:
            raise FileError(FileProblem.SUBSTITUTION)
        tree = plain(read().get_value(key))
    except (hocon.ParseError, hocon.ResolveError, hocon.ConfigError, RecursionError) as error:
        line = getattr(error, "line", 0)
        raise FileError(FileProblem.UNREADABLE, f"line {line}: {error}" if line else str(error)) from None
    return tree, list(dict.fromkeys(included))
