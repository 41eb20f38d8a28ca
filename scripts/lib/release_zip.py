"""Packs the integration as HACS wants it (`zip_release`): the content of its folder at the top of a zip file.

Needs nothing but Python. The same content makes the same file, byte by byte.
"""

import argparse
from collections.abc import Iterator
import json
from pathlib import Path
import re
import sys
import zipfile

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "custom_components" / "quic_bridge"
_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The earliest time that a zip file can say."""


def files() -> Iterator[Path]:
    """Return what belongs to the integration, in a fixed order."""
    for path in sorted(PACKAGE.rglob("*")):
        parts = path.relative_to(PACKAGE).parts
        if path.is_file() and path.suffix != ".pyc" and not any(part.startswith((".", "__pyc")) for part in parts):
            yield path


def pack(target: Path) -> None:
    """Write the zip file."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in files():
            entry = zipfile.ZipInfo(path.relative_to(PACKAGE).as_posix(), _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, path.read_bytes())


def notes(version: str) -> str:
    """Return what the changelog says of a version; exits if that is nothing."""
    changelog = (ROOT / "CHANGELOG.md").read_text()
    found = re.search(rf"^## \[{re.escape(version)}\][^\n]*\n(.*?)(?=^## |^\[|\Z)", changelog, re.DOTALL | re.MULTILINE)
    if found is None or not found[1].strip():
        sys.exit(f"release-zip: CHANGELOG.md says nothing of {version}")
    return found[1].strip() + "\n"


def main() -> None:
    """Check and pack."""
    parser = argparse.ArgumentParser(prog="release-zip")
    parser.add_argument("--tag", help="the release's tag, v and the version")
    parser.add_argument("--notes", type=Path, help="where to write what the changelog says of this version")
    parser.add_argument("--output", type=Path, default=ROOT / json.loads((ROOT / "hacs.json").read_text())["filename"])
    arguments = parser.parse_args()
    version = json.loads((PACKAGE / "manifest.json").read_text())["version"]
    if arguments.tag is not None:
        if arguments.tag != f"v{version}":
            sys.exit(f"release-zip: the tag is {arguments.tag}, but manifest.json says {version}")
        notes(version)
    if arguments.notes is not None:
        arguments.notes.write_text(notes(version))
    pack(arguments.output)
    print(f"{arguments.output}: version {version}")


if __name__ == "__main__":
    main()
