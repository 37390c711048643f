import base64
import hashlib
import json
from pathlib import Path

import pytest

from p2pllm.domain.errors import ConfigurationError
from p2pllm.security.authority import AUTHORITY_FILE, SwarmAuthority
from tests.security.material import NOW, authority, member, mode


def test_the_swarm_id_is_the_hash_of_the_authoritys_key() -> None:
    swarm = authority()
    public_key = swarm._private_key.public_key().public_bytes_raw()
    assert swarm.swarm == hashlib.sha256(public_key).hexdigest()


def test_an_authority_is_the_same_after_a_restart(tmp_path: Path) -> None:
    first = SwarmAuthority.create(tmp_path, now=NOW)
    second = SwarmAuthority.load(tmp_path)
    assert second is not None
    assert second.certificate.der == first.certificate.der
    identity, certificate = member(second)
    assert first.certificate.verify(certificate, NOW).node == identity.node_id


def test_a_node_may_have_no_authority(tmp_path: Path) -> None:
    assert SwarmAuthority.load(tmp_path) is None


def test_an_authority_is_never_overwritten(tmp_path: Path) -> None:
    SwarmAuthority.create(tmp_path, now=NOW)
    before = (tmp_path / AUTHORITY_FILE).read_bytes()
    with pytest.raises(ConfigurationError, match="choose another data folder"):
        SwarmAuthority.create(tmp_path, now=NOW)
    assert (tmp_path / AUTHORITY_FILE).read_bytes() == before


def test_its_file_is_private(tmp_path: Path) -> None:
    SwarmAuthority.create(tmp_path / "data", now=NOW)
    assert mode(tmp_path / "data" / AUTHORITY_FILE) == 0o600


def test_key_and_certificate_of_different_swarms_are_refused(tmp_path: Path) -> None:
    SwarmAuthority.create(tmp_path, now=NOW)
    path = tmp_path / AUTHORITY_FILE
    document = json.loads(path.read_text())
    document["content"]["certificate"] = base64.b64encode(authority().certificate.der).decode()
    path.write_text(json.dumps(document))
    with pytest.raises(ConfigurationError, match="restore it from a backup"):
        SwarmAuthority.load(tmp_path)


@pytest.mark.parametrize("field", ["certificate", "private_key"])
@pytest.mark.parametrize("value", [None, 3, "", "AAAA", "%%%", "é"])
def test_a_damaged_file_is_refused(tmp_path: Path, field: str, value: object) -> None:
    SwarmAuthority.create(tmp_path, now=NOW)
    path = tmp_path / AUTHORITY_FILE
    document = json.loads(path.read_text())
    document["content"][field] = value
    path.write_text(json.dumps(document))
    with pytest.raises(ConfigurationError, match="restore it from a backup"):
        SwarmAuthority.load(tmp_path)


def test_no_key_shows_in_the_repr() -> None:
    swarm = authority()
    assert repr(swarm) == f"SwarmAuthority(swarm={swarm.swarm!r})"


def test_a_key_of_the_wrong_length_gets_no_certificate() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        authority().issue(bytes(31), now=NOW)
