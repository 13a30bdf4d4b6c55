"""The certificates of a fleet: one authority, one identity for each camera, for server and broker. Files, no network.

A camera's certificate says its camera id and nothing else: the broker takes user name and client id from it, and its
access list gives each name its own topics (fleet_broker.py). The folder of a fleet:

    ca/       ca.crt, ca.key, issued.json    stays with the operator; whoever has ca.key can be any camera
    broker/   everything that the broker needs
    server/   ca.crt, client.crt, client.key
    devices/NAME/                            the same for a camera; no key where the camera made its own
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta, timezone
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from scene_edge.codec.errors import ConfigError
from scene_edge.codec.topics import Topics

CA_DAYS = 3650
DEVICE_DAYS = 730
CRL_DAYS = 3650
"""A broker refuses everybody once its list of revoked certificates is too old: only a new `revoke` makes a new one."""

SERVER = "scene-edge-server"
CA_NAME = "scene-edge fleet"
_SKEW = timedelta(days=1)
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_MAX_REQUEST_BYTES = 16_384


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate that was handed out. `role`: broker, server or device; `revoked`: when, as ISO 8601."""

    name: str
    role: str
    serial: str
    not_after: str
    revoked: str | None = None


class Fleet:
    """The authority in `folder`. Make one with `create` or `open`."""

    def __init__(self, folder: Path, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self.folder = folder
        self._key, self._certificate = key, certificate

    @classmethod
    def create(cls, folder: Path, broker_host: str, *, now: datetime | None = None) -> Fleet:
        """A new authority with a broker at `broker_host` (a name or an address) and a server.

        Raises ConfigError if there is one already: a second one would lock every camera out.
        """
        if (folder / "ca").exists():
            raise ConfigError("there is a fleet in this folder already", got=str(folder))
        _checked_host(broker_host)
        key, at = ec.generate_private_key(ec.SECP256R1()), now or _now()
        name = _name(CA_NAME)
        usage = _usage(key_cert_sign=True, crl_sign=True)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(at - _SKEW)
            .not_valid_after(at + timedelta(days=CA_DAYS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        fleet = cls(folder, key, certificate)
        _write(folder / "ca/ca.key", _key_pem(key), 0o600)
        _write(folder / "ca/ca.crt", _pem(certificate), 0o644)
        fleet._record([])
        own = ec.generate_private_key(ec.SECP256R1())
        made = fleet._issue(broker_host, "broker", own.public_key(), CA_DAYS, at)
        _write(folder / "broker/broker.key", _key_pem(own), 0o600)
        _write(folder / "broker/broker.crt", _pem(made), 0o644)
        _write(folder / "broker/ca.crt", _pem(certificate), 0o644)
        fleet._hand_out(folder / "server", SERVER, "server", None, CA_DAYS, at)
        fleet.write_crl(now=at)
        return fleet

    @classmethod
    def open(cls, folder: Path) -> Fleet:
        """Raises ConfigError if there is no authority in `folder`."""
        try:
            key = serialization.load_pem_private_key((folder / "ca/ca.key").read_bytes(), None)
            certificate = x509.load_pem_x509_certificate((folder / "ca/ca.crt").read_bytes())
        except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise ConfigError(
                f"no fleet in {folder}", got=str(error), hint="Begin one: scene-edge fleet init FOLDER --broker HOST"
            ) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ConfigError(f"the key of the fleet in {folder} is of another kind", got=type(key).__name__)
        return cls(folder, key, certificate)

    @property
    def issued(self) -> list[Issued]:
        """Every certificate that was handed out, in order. Raises ConfigError if the record cannot be read."""
        path = self.folder / "ca/issued.json"
        try:
            return [Issued(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"cannot read {path}", got=str(error)) from error

    def add_device(
        self, camera: str, request: bytes | None = None, *, days: int = DEVICE_DAYS, now: datetime | None = None
    ) -> Path:
        """A certificate for a camera, in the folder that is returned.

        `request`: PEM of `make_request`, whose key stays on the camera; without it the key is made here.

        Raises ConfigError for a name that is no camera id or has a certificate already, and for a request that is none.
        """
        Topics(camera)
        if camera == SERVER:
            raise ConfigError("this name is the server's", got=camera)
        at = now or _now()
        if any(entry.name == camera and entry.revoked is None for entry in self.issued):
            raise ConfigError("this camera has a certificate already", got=camera, hint="Revoke it first.")
        folder = self.folder / "devices" / camera
        self._hand_out(folder, camera, "device", request, days, at)
        return folder

    def revoke(self, name: str, *, now: datetime | None = None) -> None:
        """Take a name's certificate back, and write the broker's list anew. Raises ConfigError where there is none."""
        at, entries = now or _now(), self.issued
        if not any(entry.name == name and entry.revoked is None for entry in entries):
            raise ConfigError("there is no valid certificate of this name", got=name)
        self._record(
            [
                replace(entry, revoked=at.isoformat()) if entry.name == name and entry.revoked is None else entry
                for entry in entries
            ]
        )
        self.write_crl(now=at)

    def write_crl(self, *, now: datetime | None = None) -> None:
        """broker/crl.pem: what the broker must not let in any more."""
        at = now or _now()
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._certificate.subject)
            .last_update(at - _SKEW)
            .next_update(at + timedelta(days=CRL_DAYS))
        )
        for entry in self.issued:
            if entry.revoked is not None:
                builder = builder.add_revoked_certificate(
                    x509.RevokedCertificateBuilder()
                    .serial_number(int(entry.serial, 16))
                    .revocation_date(datetime.fromisoformat(entry.revoked))
                    .build()
                )
        crl = builder.sign(self._key, hashes.SHA256())
        _write(self.folder / "broker/crl.pem", crl.public_bytes(serialization.Encoding.PEM), 0o644)

    def _hand_out(self, folder: Path, name: str, role: str, request: bytes | None, days: int, at: datetime) -> None:
        if request is None:
            key = ec.generate_private_key(ec.SECP256R1())
            public = key.public_key()
        else:
            public = _key_of(request)
            (folder / "client.key").unlink(missing_ok=True)  # of a certificate before this one
        certificate = self._issue(name, role, public, days, at)
        if request is None:
            _write(folder / "client.key", _key_pem(key), 0o600)
        _write(folder / "client.crt", _pem(certificate), 0o644)
        _write(folder / "ca.crt", _pem(self._certificate), 0o644)

    def _issue(
        self, name: str, role: str, public: ec.EllipticCurvePublicKey, days: int, at: datetime
    ) -> x509.Certificate:
        purpose = ExtendedKeyUsageOID.SERVER_AUTH if role == "broker" else ExtendedKeyUsageOID.CLIENT_AUTH
        not_after = at + timedelta(days=days)
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(self._certificate.subject)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(at - _SKEW)
            .not_valid_after(not_after)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        if role == "broker":
            builder = builder.add_extension(x509.SubjectAlternativeName([_alternative(name)]), critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        entry = Issued(name, role, f"{certificate.serial_number:x}", not_after.isoformat(timespec="seconds"))
        self._record([*self.issued, entry])
        return certificate

    def _record(self, entries: list[Issued]) -> None:
        text = json.dumps([asdict(entry) for entry in entries], indent=1) + "\n"
        _write(self.folder / "ca/issued.json", text.encode(), 0o600)


def make_request(camera: str, folder: Path) -> Path:
    """A new private key in `folder`, which never leaves it, and the request that the operator signs.

    Raises ConfigError for a name that is no camera id, and where a key is already: that may be in use.
    """
    Topics(camera)
    if (folder / "client.key").exists():
        raise ConfigError("there is a key already", got=str(folder / "client.key"), hint="Remove it to make a new one.")
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(_name(camera)).sign(key, hashes.SHA256())
    _write(folder / "client.key", _key_pem(key), 0o600)
    path = folder / "client.csr"
    _write(path, request.public_bytes(serialization.Encoding.PEM), 0o644)
    return path


def _key_of(request: bytes) -> ec.EllipticCurvePublicKey:
    """The public key of a request. What name it asks for does not matter: the operator says which camera it is."""
    try:
        if len(request) > _MAX_REQUEST_BYTES:
            raise ValueError(f"{len(request)} bytes")
        asked = x509.load_pem_x509_csr(request)
        valid, public = asked.is_signature_valid, asked.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise ConfigError("not a certificate request", got=str(error)[:200]) from error
    if not valid or not isinstance(public, ec.EllipticCurvePublicKey) or public.curve.name != "secp256r1":
        raise ConfigError("a certificate request must be signed by its own P-256 key", got=type(public).__name__)
    return public


def _checked_host(host: str) -> None:
    if not _HOST.fullmatch(host) and not isinstance(_alternative(host), x509.IPAddress):
        raise ConfigError("not the name or address of a broker", got=host[:80])


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _usage(**wanted: bool) -> x509.KeyUsage:
    names = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
             "key_cert_sign", "crl_sign", "encipher_only", "decipher_only")  # fmt: skip
    flags: dict[str, Any] = {name: wanted.get(name, False) for name in names}
    return x509.KeyUsage(**flags)


def _name(common: str) -> x509.Name:
    # A broker's name may be longer than a common name can be; its clients look at the alternative name alone.
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common[:64])])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, data: bytes, mode: int) -> None:
    """Whole or not at all, and never readable by others for a moment before its mode is set."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)
    temporary.replace(path)


def _now() -> datetime:
    return datetime.now(timezone.utc).replace(microsecond=0)
