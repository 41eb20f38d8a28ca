"""What a release is made of: the file that HACS installs, and what is said of it."""

import json
from pathlib import Path
import re
import subprocess
import zipfile

from awesomeversion import AwesomeVersion
from homeassistant.util.yaml import load_yaml_dict

from .ha_fixtures import PACKAGE

ROOT = PACKAGE.parents[1]
VERSION = json.loads((PACKAGE / "manifest.json").read_text())["version"]


def release_zip(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the script as the workflow does."""
    command = [str(ROOT / "scripts" / "release-zip"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_the_file_that_hacs_installs(tmp_path: Path) -> None:
    target, notes = tmp_path / "bridge.zip", tmp_path / "notes.md"
    done = release_zip("--tag", f"v{VERSION}", "--output", target, "--notes", notes)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(target) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert json.loads(archive.read("manifest.json"))["version"] == VERSION
        content = {name: archive.read(name) for name in names}
    # HACS unpacks it into the integration's folder, so it has that folder's content, and nothing else.
    expected = [
        path
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    ]
    assert content == {path.relative_to(PACKAGE).as_posix(): path.read_bytes() for path in expected}
    assert {"__init__.py", "bridge/bridge.py", "translations/en.json", "brand/icon.png"} <= set(names)
    assert notes.read_text().startswith("### ")

    again = tmp_path / "again.zip"
    assert release_zip("--output", again).returncode == 0
    assert again.read_bytes() == target.read_bytes()


def test_a_tag_of_another_version_is_no_release(tmp_path: Path) -> None:
    target = tmp_path / "bridge.zip"
    done = release_zip("--tag", "v999.0.0", "--output", target)
    assert done.returncode != 0
    assert f"manifest.json says {VERSION}" in done.stderr
    assert not target.exists()


def test_hacs_takes_the_file_that_the_workflow_publishes() -> None:
    hacs = json.loads((ROOT / "hacs.json").read_text())
    assert (hacs["zip_release"], hacs["filename"]) == (True, "quic_bridge.zip")
    jobs = load_yaml_dict(str(ROOT / ".github" / "workflows" / "release.yml"))["jobs"]
    commands = [step["run"] for step in jobs["release"]["steps"] if "run" in step]
    assert commands[0].startswith('scripts/release-zip --tag "$GITHUB_REF_NAME"')
    assert f'gh release create "$GITHUB_REF_NAME" {hacs["filename"]}' in commands[1]
    assert jobs["release"]["needs"] == "tests"
    assert "workflow_call" in (ROOT / ".github" / "workflows" / "tests.yml").read_text()


def test_changelog() -> None:
    """As keepachangelog.com has it: newest first, each version with its date, and this version among them."""
    changelog = (ROOT / "CHANGELOG.md").read_text()
    headings = re.findall(r"^## \[(.+?)\](.*)$", changelog, re.MULTILINE)
    assert headings[0] == ("Unreleased", "")
    versions = [AwesomeVersion(version) for version, _ in headings[1:]]
    assert versions == sorted(versions, reverse=True)
    assert VERSION in versions
    assert all(re.fullmatch(r" - \d{4}-\d{2}-\d{2}", date) for _, date in headings[1:])
    kinds = set(re.findall(r"^### (.+)$", changelog, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    for version, _ in headings:
        assert f"\n[{version}]: https://github.com/quic-bridge/ha-quic-bridge/" in changelog


def test_contributing_names_what_there_is() -> None:
    """Each command and folder in CONTRIBUTING.md is there."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for script in set(re.findall(r"(?<![\w/])(scripts/[\w-]+|\.ci/\w+)", text)):
        assert (ROOT / script).exists(), script
    for folder in set(re.findall(r"`(tests/[\w/]*|docs/[\w./-]+|custom_components/[\w/]+)`", text)):
        assert (ROOT / folder).exists(), folder
    assert "scripts/test --snapshots" in text
    assert "--snapshots" in (ROOT / "scripts" / "test").read_text()
