import errno
import os
from pathlib import Path

import pytest

from p2pllm.domain.errors import ConfigurationError
from p2pllm.security import storage
from tests.security.material import mode

KIND = "p2pllm test"
REMEDY = "do this next"


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    storage.write_private_json(path, KIND, {"a": [1, "two"]})
    assert storage.read_private_json(path, KIND, remedy=REMEDY) == {"a": [1, "two"]}


def test_there_may_be_no_file_yet(tmp_path: Path) -> None:
    assert storage.read_private_json(tmp_path / "none", KIND, remedy=REMEDY) is None


def test_files_and_new_folders_are_for_their_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        path = tmp_path / "new" / "file.json"
        storage.write_private_json(path, KIND, {})
    finally:
        os.umask(before)
    assert mode(path) == 0o600
    assert mode(path.parent) == 0o700


def test_a_file_torn_anywhere_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    storage.write_private_json(path, KIND, {"secret": "hush"})
    whole = path.read_bytes()
    for length in range(len(whole.rstrip())):
        path.write_bytes(whole[:length])
        with pytest.raises(ConfigurationError, match=REMEDY) as caught:
            storage.read_private_json(path, KIND, remedy=REMEDY)
        assert "hush" not in str(caught.value)
        assert path.read_bytes() == whole[:length]


@pytest.mark.parametrize(
    "foreign",
    [
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"kind": "p2pllm other", "format": 1, "content": {}}',
        b'{"kind": "p2pllm test", "format": 1, "content": []}',
        b'{"kind": "p2pllm test", "format": "x", "content": {}}',
        b"[" * 200_000,
        b" " * (storage.FILE_BYTES_MAX + 1),
    ],
    ids=range(8),
)
def test_a_foreign_file_is_refused(tmp_path: Path, foreign: bytes) -> None:
    path = tmp_path / "file.json"
    storage.write_private(path, foreign)
    with pytest.raises(ConfigurationError, match="damaged or not a file of p2pllm; do this next"):
        storage.read_private_json(path, KIND, remedy=REMEDY)


def test_a_file_of_a_newer_version_asks_for_an_upgrade(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    storage.write_private(path, b'{"kind": "p2pllm test", "format": 2, "content": {}}')
    with pytest.raises(ConfigurationError, match="newer p2pllm"):
        storage.read_private_json(path, KIND, remedy=REMEDY)


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o620])
def test_a_file_others_may_read_or_write_is_refused(tmp_path: Path, bits: int) -> None:
    path = tmp_path / "file.json"
    storage.write_private_json(path, KIND, {})
    path.chmod(bits)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        storage.read_private_json(path, KIND, remedy=REMEDY)


def test_a_folder_others_may_write_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o770)
    with pytest.raises(ConfigurationError, match="chmod 700"):
        storage.write_private(tmp_path / "file", b"")


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"")
    with pytest.raises(ConfigurationError, match="cannot make the folder"):
        storage.write_private(tmp_path / "data" / "file", b"")


def test_a_folder_in_the_place_of_the_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(ConfigurationError, match="cannot read"):
        storage.read_private(tmp_path / "file", remedy=REMEDY)
    with pytest.raises(ConfigurationError, match="cannot write"):
        storage.write_private(tmp_path / "file", b"")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("step", ["fsync", "mkstemp"])
def test_a_full_disk_leaves_the_old_content_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "file"
    storage.write_private(path, b"old")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(storage.os if step == "fsync" else storage.tempfile, step, full)
    with pytest.raises(ConfigurationError, match="no space left on device"):
        storage.write_private(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
