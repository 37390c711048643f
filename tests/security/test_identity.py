import hashlib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from p2pllm.domain.errors import ConfigurationError
from p2pllm.domain.ids import is_node_id
from p2pllm.security import storage
from p2pllm.security.identity import IDENTITY_FILE, NodeIdentity
from tests.security.material import mode


def test_the_node_id_is_the_first_half_of_the_hash_of_the_public_key() -> None:
    identity = NodeIdentity.generate()
    assert identity.node_id == hashlib.sha256(identity.public_key).hexdigest()[:32]
    assert is_node_id(identity.node_id)


def test_an_identity_is_the_same_after_a_restart(tmp_path: Path) -> None:
    first = NodeIdentity.load_or_create(tmp_path / "data")
    second = NodeIdentity.load_or_create(tmp_path / "data")
    assert first.node_id == second.node_id
    assert first.sign(b"x") == second.sign(b"x")


def test_nothing_is_made_by_loading(tmp_path: Path) -> None:
    assert NodeIdentity.load(tmp_path / "data") is None
    assert not (tmp_path / "data").exists()


def test_the_key_file_and_its_folder_are_private(tmp_path: Path) -> None:
    NodeIdentity.load_or_create(tmp_path / "data")
    assert mode(tmp_path / "data") == 0o700
    assert mode(tmp_path / "data" / IDENTITY_FILE) == 0o600


def test_signatures_hold_under_the_public_key() -> None:
    identity = NodeIdentity.generate()
    Ed25519PublicKey.from_public_bytes(identity.public_key).verify(identity.sign(b"x"), b"x")


def test_a_torn_key_file_is_refused_and_not_replaced(tmp_path: Path) -> None:
    NodeIdentity.load_or_create(tmp_path)
    path = tmp_path / IDENTITY_FILE
    whole = path.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 8):
        path.write_bytes(whole[:length])
        with pytest.raises(ConfigurationError, match="restore it from a backup, or delete it"):
            NodeIdentity.load_or_create(tmp_path)
        assert path.read_bytes() == whole[:length]


def test_a_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    pem = X25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    storage.write_private(tmp_path / IDENTITY_FILE, pem)
    with pytest.raises(ConfigurationError, match="not a file of p2pllm"):
        NodeIdentity.load(tmp_path)


def test_a_key_locked_by_a_password_is_refused(tmp_path: Path) -> None:
    pem = NodeIdentity.generate().encrypted_pem(b"password")
    storage.write_private(tmp_path / IDENTITY_FILE, pem)
    with pytest.raises(ConfigurationError):
        NodeIdentity.load(tmp_path)


def test_the_key_shows_neither_in_the_repr_nor_in_a_damaged_files_error(tmp_path: Path) -> None:
    identity = NodeIdentity.load_or_create(tmp_path)
    path = tmp_path / IDENTITY_FILE
    body = path.read_text().splitlines()[1]
    assert repr(identity) == f"NodeIdentity(node_id={identity.node_id!r})"
    path.write_text(path.read_text().replace("-----END", "----END"))
    with pytest.raises(ConfigurationError) as caught:
        NodeIdentity.load(tmp_path)
    assert body not in str(caught.value)
    assert caught.value.__cause__ is None
