"""`sma keys`, and `sma serve` where access is by keys."""

import json
from pathlib import Path

import pytest
from cryptography import x509

from tests.integration.cli.conftest import Place, assert_refused
from tests.support.access_keys import bearer
from tests.support.programs.server import Server


def created(place: Place, *arguments: str) -> dict[str, object]:
    """What the command tells a script of a new key."""
    made = place.sma("keys", "create", *arguments, "--json")
    assert made.returncode == 0, made.stderr
    facts: dict[str, object] = json.loads(made.stdout)
    return facts


def test_a_keys_life(place: Place) -> None:
    """Created, listed, rotated, revoked; its secret is shown at its making alone."""
    first = created(place, "newsroom-1", "--scope", "validate", "--disclosure", "family")
    assert first["state"] == "in force"
    assert first["disclosure"] == "family"
    listed = place.sma("keys", "list")
    assert "newsroom-1" in listed.stdout
    assert "discloses family" in listed.stdout
    assert str(first["key"])[15:] not in listed.stdout + place.sma("keys", "list", "--json").stdout
    rotated = place.sma("keys", "rotate", "newsroom-1", "--grace", "30m", "--json")
    second = json.loads(rotated.stdout)
    assert second["id"] == first["id"]
    assert second["key"] != first["key"]
    assert place.sma("keys", "revoke", str(first["id"])).returncode == 0
    assert "No access key is valid." in place.sma("keys", "list").stdout
    assert "revoked" in place.sma("keys", "list", "--all").stdout
    assert_refused(place.sma("keys", "revoke", "newsroom-1"), 5, "newsroom-1", "sma keys list")


def test_what_a_person_sees(place: Place) -> None:
    """The key, and how it is sent; on stdout nothing but the facts."""
    made = place.sma(
        *("keys", "create", "friday", "--scope", "provision", "--family", "Android"),
        *("--uses", "500", "--expires", "2199-12-31", "--may-re-enrol"),
    )
    assert made.returncode == 0
    lines = made.stdout.splitlines()
    assert [line.split()[0] for line in lines if line[0] != " "] == [
        *("name", "id", "scope", "limits", "key")
    ]
    assert "until 2200-01-01 00:00 UTC" in made.stdout
    assert "family Android" in made.stdout
    assert "0 of 500 devices used" in made.stdout
    assert "may re-enrol devices" in made.stdout
    assert "Authorization: Bearer sma_" in made.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--scope", "everything"), 2, ("provision, validate, monitor, read, operate, admin",)),
        ((), 2, ("--scope",)),
        (("--scope", "validate", "--uses", "5"), 6, ("provision",)),
        (("--scope", "validate", "--may-re-enrol"), 6, ("provision",)),
        (("--scope", "admin", "--disclosure", "none"), 6, ("validate",)),
        (("--scope", "validate", "--disclosure", "all"), 2, ("serial, family, none",)),
        (("--scope", "provision", "--uses", "0"), 2, ("--uses",)),
        (("--scope", "provision", "--expires", "soon"), 2, ("12h",)),
        (("--scope", "provision", "--expires", "9999-12-31"), 2, ("9999-12-31",)),
        (("--scope", "provision", "--expires", "9999-12-31T23:59-01:00"), 2, ("9999-12-31",)),
        (("--scope", "provision", "--family", "a" * 51), 6, ("50 printable",)),
        (("--scope", "provision", "--expires", "2020-01-01"), 6, ("in the future",)),
        (("--scope", "validate", "--client-cert", "/etc/hostname"), 2, ("PEM",)),
        (("--scope", "validate", "--client-cert", "/no/such/file"), 3, ("No such file",)),
    ],
)
def test_what_makes_no_sense(
    place: Place, arguments: tuple[str, ...], code: int, words: tuple[str, ...]
) -> None:
    refused = place.sma("keys", "create", "one", *arguments)
    assert refused.returncode == code, refused.stderr
    assert "Traceback" not in refused.stderr
    for word in words:
        assert word in refused.stderr
    assert "There are no access keys." in place.sma("keys", "list").stdout


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("2199-12-31", "2200-01-01 00:00"),
        ("21991231", "2200-01-01 00:00"),
        ("2199-12-31T18:00", "2199-12-31 18:00"),
        ("2199-12-31T18:00+05:30", "2199-12-31 12:30"),
    ],
)
def test_when_a_key_ends(place: Place, given: str, told: str) -> None:
    """A day to its end, a time in its zone; what is told is UTC, as it says."""
    made = place.sma("keys", "create", "one", "--scope", "admin", "--expires", given)
    assert f"until {told} UTC" in made.stdout


def test_two_keys_of_one_name(place: Place) -> None:
    created(place, "one", "--scope", "admin")
    again = place.sma("keys", "create", "one", "--scope", "validate")
    assert_refused(again, 5, "one", "Revoke")


def test_keys_need_an_authority(empty: Place) -> None:
    refused = empty.sma("keys", "create", "one", "--scope", "admin")
    assert refused.returncode != 0
    assert "sma " in refused.stderr


def test_a_client_certificate_for_a_key(place: Place, tmp_path: Path) -> None:
    """Then there is no secret to show; here the root stands in for a client's CA."""
    assert place.sma("ca", "export", "--output-dir", str(tmp_path / "ca")).returncode == 0
    pem = tmp_path / "ca" / "simulated-mfg-root-ca.crt"
    facts = created(place, "one", "--scope", "validate", "--client-issuer", str(pem))
    assert facts["key"] is None
    root = x509.load_pem_x509_certificate(pem.read_bytes())
    assert facts["certificate_issuer"] == root.subject.rfc4514_string()
    own = created(place, "two", "--scope", "validate", "--client-cert", str(pem))
    assert own["certificate_sha256"]


# --- serve


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_all_addresses_without_keys_are_refused(place: Place, host: str) -> None:
    """Threat 22: with the reason, and what to type."""
    refused = place.sma("serve", "--port", "0", "--host", host)
    assert_refused(refused, 3, host, "sma keys create", "127.0.0.1", "--access open")


def test_keys_that_are_not_in_force_are_none(place: Place) -> None:
    created(place, "one", "--scope", "admin")
    place.sma("keys", "revoke", "one")
    refused = place.sma("serve", "--port", "0", "--access", "keys")
    assert_refused(refused, 3, "sma keys create")


def test_with_a_key_every_address_will_do(place: Place) -> None:
    """And nothing is open there by accident."""
    key = created(place, "one", "--scope", "admin")["key"]
    with Server(place.data_dir, "--host", "0.0.0.0") as server, server.client() as client:
        assert server.url.startswith("http://0.0.0.0:")
        assert client.get("/stats").status_code == 401
        assert client.get("/health/live").status_code == 200
        assert client.get("/stats", headers=bearer(str(key))).status_code == 200
        assert "access is open" not in server.said()
