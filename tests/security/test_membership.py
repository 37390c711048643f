import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from p2pllm.domain.errors import ConfigurationError
from p2pllm.security.identity import NodeIdentity
from p2pllm.security.membership import MEMBERSHIP_FILE, Membership, load_membership
from tests.security.material import ADDRESS, DAY, KEY, NOW, OLDER_KEY, authority, member, mode

SWARM = authority()
IDENTITY, CERTIFICATE = member(SWARM)
MEMBERSHIP = Membership(SWARM.certificate.der, CERTIFICATE, (KEY, OLDER_KEY), (ADDRESS,))


def test_a_membership_is_the_same_after_a_restart(tmp_path: Path) -> None:
    MEMBERSHIP.save(tmp_path / "data")
    assert load_membership(tmp_path / "data", IDENTITY) == MEMBERSHIP
    assert mode(tmp_path / "data" / MEMBERSHIP_FILE) == 0o600
    assert MEMBERSHIP.swarm == SWARM.swarm


def test_a_node_may_be_no_member_yet(tmp_path: Path) -> None:
    assert load_membership(tmp_path, IDENTITY) is None


def test_each_start_has_a_higher_epoch_that_is_on_the_disk_first(tmp_path: Path) -> None:
    first = MEMBERSHIP.begin_boot(tmp_path, 1_000)
    assert first.boot_epoch == 1_000
    assert load_membership(tmp_path, IDENTITY) == first
    second = first.begin_boot(tmp_path, 500)
    assert second.boot_epoch == 1_001
    assert load_membership(tmp_path, IDENTITY) == second


def test_without_a_disk_there_is_no_start(tmp_path: Path) -> None:
    (tmp_path / MEMBERSHIP_FILE).mkdir()
    with pytest.raises(ConfigurationError):
        MEMBERSHIP.begin_boot(tmp_path, 1_000)


def test_renewal_is_due_ten_days_before_the_end() -> None:
    second = timedelta(seconds=1)
    assert not MEMBERSHIP.needs_renewal(NOW + 20 * DAY - second)
    assert MEMBERSHIP.needs_renewal(NOW + 20 * DAY)
    assert not MEMBERSHIP.is_expired(NOW + 30 * DAY)
    assert MEMBERSHIP.is_expired(NOW + 30 * DAY + second)
    assert MEMBERSHIP.expires == NOW + 30 * DAY


def test_an_expired_membership_still_loads(tmp_path: Path) -> None:
    old = replace(MEMBERSHIP, certificate=SWARM.issue(IDENTITY.public_key, now=NOW - 9999 * DAY))
    old.save(tmp_path)
    loaded = load_membership(tmp_path, IDENTITY)
    assert loaded is not None
    assert loaded.is_expired(NOW)


def test_another_nodes_membership_is_refused(tmp_path: Path) -> None:
    MEMBERSHIP.save(tmp_path)
    with pytest.raises(ConfigurationError, match="of another node"):
        load_membership(tmp_path, NodeIdentity.generate())


def test_a_certificate_of_another_swarm_is_refused(tmp_path: Path) -> None:
    replace(MEMBERSHIP, authority=authority().certificate.der).save(tmp_path)
    with pytest.raises(ConfigurationError, match="join again with a new invite"):
        load_membership(tmp_path, IDENTITY)


@pytest.mark.parametrize(
    "change",
    [
        {"authority": "AAAA"},
        {"authority": None},
        {"certificate": "%"},
        {"keys": []},
        {"keys": [{"number": 1, "secret": "AAAA"}]},
        {"keys": [{"number": 1}]},
        {"peers": [{"host": "x"}]},
        {"peers": 3},
        {"boot_epoch": -1},
        {"boot_epoch": None},
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    MEMBERSHIP.save(tmp_path)
    path = tmp_path / MEMBERSHIP_FILE
    document = json.loads(path.read_text())
    document["content"].update(change)
    path.write_text(json.dumps(document))
    with pytest.raises(ConfigurationError, match="join again with a new invite"):
        load_membership(tmp_path, IDENTITY)


def test_no_key_shows_in_the_repr() -> None:
    assert repr(KEY.secret) not in repr(MEMBERSHIP)
    assert KEY.secret.hex() not in repr(MEMBERSHIP)
