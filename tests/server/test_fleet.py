"""The certificates of a fleet as files: what they say, who may read them, what is refused."""

from __future__ import annotations

import json
import stat
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from scene_edge.cli import run
from scene_edge.codec.errors import ConfigError
from scene_edge.server.fleet import SERVER, Fleet, make_request
from scene_edge.server.fleet_broker import access_list, settings

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet.create(tmp_path / "fleet", "broker.example", now=NOW)


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def common_name(path: Path) -> object:
    return certificate(path).subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value


def test_each_has_its_own_name_and_key(fleet: Fleet) -> None:
    folders = [fleet.add_device(name) for name in ("gate-1", "gate-2")]
    assert [common_name(folder / "client.crt") for folder in folders] == ["gate-1", "gate-2"]
    assert common_name(fleet.folder / "server/client.crt") == SERVER
    keys = {path.read_bytes() for path in fleet.folder.rglob("*.key")}
    assert len(keys) == 5
    names = certificate(fleet.folder / "broker/broker.crt").extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert names.value.get_values_for_type(x509.DNSName) == ["broker.example"]


def test_private_keys_are_their_owners_alone(fleet: Fleet) -> None:
    fleet.add_device("gate-1")
    for path in fleet.folder.rglob("*.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_a_camera_may_make_its_key_itself(fleet: Fleet, tmp_path: Path) -> None:
    request = make_request("gate-1", tmp_path / "tls")
    folder = fleet.add_device("gate-1", request.read_bytes())
    assert not (folder / "client.key").exists()
    asked = x509.load_pem_x509_csr(request.read_bytes())
    assert certificate(folder / "client.crt").public_key() == asked.public_key()
    with pytest.raises(ConfigError, match="a key already"):
        make_request("gate-1", tmp_path / "tls")


def test_the_operator_says_which_camera_a_request_is_for(fleet: Fleet, tmp_path: Path) -> None:
    request = make_request(SERVER, tmp_path / "tls").read_bytes()
    assert common_name(fleet.add_device("gate-1", request) / "client.crt") == "gate-1"


@pytest.mark.parametrize("name", [SERVER, "a/b", "", "+", "#", "a b", "x" * 65, "../gate"])
def test_names_that_no_camera_has(fleet: Fleet, name: str) -> None:
    with pytest.raises(ConfigError):
        fleet.add_device(name)


@pytest.mark.parametrize("request_", [b"", b"rubbish", b"x" * 20_000, b"-----BEGIN CERTIFICATE REQUEST-----\nAA==\n"])
def test_what_is_no_request(fleet: Fleet, request_: bytes) -> None:
    with pytest.raises(ConfigError, match="certificate request"):
        fleet.add_device("gate-1", request_)
    assert [entry.name for entry in fleet.issued] == ["broker.example", SERVER]


def test_one_certificate_a_camera_until_it_is_revoked(fleet: Fleet) -> None:
    fleet.add_device("gate-1", now=NOW)
    with pytest.raises(ConfigError, match="already"):
        fleet.add_device("gate-1")
    first = certificate(fleet.folder / "devices/gate-1/client.crt")
    fleet.revoke("gate-1", now=NOW)
    with pytest.raises(ConfigError, match="no valid certificate"):
        fleet.revoke("gate-1")
    Fleet.open(fleet.folder).add_device("gate-1")
    crl = x509.load_pem_x509_crl((fleet.folder / "broker/crl.pem").read_bytes())
    assert [entry.serial_number for entry in crl] == [first.serial_number]
    second = certificate(fleet.folder / "devices/gate-1/client.crt")
    assert crl.get_revoked_certificate_by_serial_number(second.serial_number) is None


def test_certificates_end(fleet: Fleet) -> None:
    made = certificate(fleet.add_device("gate-1", days=30, now=NOW) / "client.crt")
    assert made.not_valid_after_utc == NOW + timedelta(days=30)


def test_a_second_authority_would_lock_every_camera_out(fleet: Fleet) -> None:
    with pytest.raises(ConfigError, match="already"):
        Fleet.create(fleet.folder, "broker.example")


def test_a_broker_with_a_long_name(tmp_path: Path) -> None:
    host = "broker." + "x" * 60 + ".example"
    made = certificate(Fleet.create(tmp_path / "fleet", host).folder / "broker/broker.crt")
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert names.value.get_values_for_type(x509.DNSName) == [host]


@pytest.mark.parametrize("host", ["", "a b", "-x", "x;y", "a\nb"])
def test_no_host(tmp_path: Path, host: str) -> None:
    with pytest.raises(ConfigError, match="name or address"):
        Fleet.create(tmp_path / "fleet", host)


def test_where_no_fleet_is(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no fleet"):
        Fleet.open(tmp_path)


def test_an_access_list_forbids_by_default() -> None:
    lines = [line.split() for line in access_list().splitlines() if line and not line.startswith("#")]
    assert {line[0] for line in lines} == {"pattern", "topic", "user"}
    patterns = [line for line in lines if line[0] == "pattern"]
    assert all(line[2].split("/")[3] == "%u" for line in patterns), "each camera its own topics"
    assert not [line for line in lines if line[-1] in ("#", "scene/1/#")]


def test_the_brokers_settings_let_nobody_in_without_a_certificate() -> None:
    text = settings(Path("/etc/x"))
    for line in ("require_certificate true", "allow_anonymous false", "use_identity_as_username true",
                 "use_username_as_clientid true", "crlfile /etc/x/crl.pem", "tls_version tlsv1.2"):  # fmt: skip
        assert line in text.splitlines()


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, tls = str(tmp_path / "fleet"), str(tmp_path / "tls")
    assert run(["fleet", "init", folder, "--broker", "10.0.0.7", "--etc", "/etc/x"]) == 0
    assert "cafile /etc/x/ca.crt" in (tmp_path / "fleet/broker/mosquitto.conf").read_text()
    assert run(["fleet", "request", "gate-1", "--out", tls]) == 0
    assert run(["fleet", "device", folder, "gate-1", "--csr", f"{tls}/client.csr"]) == 0
    assert run(["fleet", "revoke", folder, "gate-1"]) == 0
    assert run(["fleet", "list", folder]) == 0
    assert "gate-1" in capsys.readouterr().out
    assert run(["fleet", "device", folder, "gate-2", "--csr", f"{tls}/none.csr"]) == 2
    issued = json.loads((tmp_path / "fleet/ca/issued.json").read_text())
    assert [entry["role"] for entry in issued] == ["broker", "server", "device"]
    assert issued[2]["revoked"]
