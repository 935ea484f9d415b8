"""The ledger of issued tokens: what is in its file, who may read it, and what a killed process leaves there."""

import json
import os
import re
import secrets
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from service.adapters.jwks import parse_jwks
from service.adapters.users_file import Users, verify_password
from service.core.identity.compact import decode_segment, parse_json_object
from service.issuing import ledger as ledger_module
from service.issuing.database import LedgerError
from service.issuing.ledger import (
    KEEP_EXPIRED,
    KEEP_KEY,
    KEEP_REVOKED,
    LEAD,
    Ledger,
    Token,
    TooManyTokensError,
    owner_of,
    signer_of,
)
from service.issuing.machine_secrets import split_secret
from service.issuing.sqlite import FILE, SQLite
from service.settings.tokens import MAX_UNLISTED
from tests.issuing.conftest import DAY, ROTATE, Place
from tests.support.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
SECRETS = ("a-secret-of-more-than-thirty-two-characters", "another-secret-of-more-than-thirty-two")
KILLS = 3
FIRST_INSERT = "INSERT INTO tokens VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"


def open_ledger(folder: Path) -> Ledger:
    return Ledger(SQLite(folder / "tokens"), rotate=ROTATE)


def issue(ledger: Ledger, name: str = "etl", lifetime: float = DAY, ago: float = 0) -> str:
    return ledger.issue(name, "worker", lifetime, "us", "prefect", time.time() - ago)[0]


def owned(ledger: Ledger, owner: str) -> Token:
    return ledger.issue("ada/laptop", "worker", DAY, "us", "prefect", owner=owner)[1]


def key_id(token: str) -> str:
    kid = json.loads(decode_segment(token.partition(".")[0].encode()))["kid"]
    assert isinstance(kid, str)
    return kid


def test_a_token_is_an_rfc_9068_access_token_that_the_published_key_verifies(ledger: Ledger) -> None:
    token, entry = ledger.issue("etl", "worker", DAY, "us", "prefect")
    signed, _, signature = token.rpartition(".")
    header, payload = (json.loads(decode_segment(one.encode())) for one in signed.split("."))
    assert (header["typ"], header["alg"]) == ("at+jwt", "EdDSA")
    assert parse_json_object(decode_segment(signed.split(".")[1].encode())) == payload
    assert payload == {
        "iss": "us",
        "aud": "prefect",
        "sub": "etl",
        "client_id": "etl",
        "jti": entry.id,
        "iat": entry.created,
        "exp": entry.created + 86_400,
        "roles": ["worker"],
    }
    key = parse_jwks(ledger.changes_since(-1).jwks.encode(), frozenset({"EdDSA"}), "us").find(header["kid"], "EdDSA")
    assert key is not None
    assert key.verify(signed.encode(), decode_segment(signature.encode())) is True


def test_the_file_is_for_its_owner_alone_and_holds_no_token(tmp_path: Path) -> None:
    with open_ledger(tmp_path) as ledger:
        token = issue(ledger)
        files = list((tmp_path / "tokens").iterdir())
        assert {f"{FILE}-wal", FILE} <= {one.name for one in files}
        assert {stat.S_IMODE(one.stat().st_mode) for one in files} == {0o600}
        assert stat.S_IMODE((tmp_path / "tokens").stat().st_mode) == 0o700
        content = b"".join(one.read_bytes() for one in files)
    assert b"etl" in content
    assert token.rpartition(".")[2].encode() not in content


def test_the_tables_hold_no_token(place: Place, ledger: Ledger) -> None:
    token = issue(ledger)
    assert "etl" in place.content()
    assert token.rpartition(".")[2] not in place.content()


def test_a_private_key_is_encrypted_where_there_are_session_keys_and_outlives_their_rotation(place: Place) -> None:
    with place.ledger(SECRETS[:1]) as first:
        kid = key_id(issue(first))
    assert place.rows("SELECT count(*) FROM keys WHERE private LIKE '%ENCRYPTED%'") == [(1,)]
    with place.ledger(SECRETS[::-1]) as rotated:
        assert key_id(issue(rotated)) == kid
    with place.ledger(SECRETS[1:]) as without_the_first:
        assert key_id(issue(without_the_first)) == kid


def test_a_key_that_cannot_be_decrypted_signs_no_more_and_stays_published(place: Place) -> None:
    with place.ledger(SECRETS[:1]) as first:
        kid = key_id(issue(first))
    with place.ledger(SECRETS[1:]) as stranger:
        assert key_id(issue(stranger)) != kid
        assert kid in stranger.changes_since(-1).jwks


def test_a_plain_key_is_encrypted_once_there_are_session_keys(place: Place) -> None:
    with place.ledger() as plain:
        kid = key_id(issue(plain))
    with place.ledger(SECRETS):
        pass
    assert place.rows("SELECT kid, private LIKE '%ENCRYPTED%' FROM keys") == [(kid, 1)]


def test_an_old_key_is_published_until_its_last_token_has_expired(place: Place) -> None:
    with place.ledger() as ledger:
        first = issue(ledger, lifetime=60 * DAY)
    place.run("UPDATE keys SET created = created - ?", int(ROTATE) + 1)
    with place.ledger() as ledger:
        assert len(json.loads(ledger.changes_since(-1).jwks)["keys"]) == 2
        assert key_id(issue(ledger)) == key_id(first), "the next key signs before others can know it"
        place.run("UPDATE keys SET created = created - ? WHERE kid != ?", LEAD, key_id(first))
        second = issue(ledger)
        assert key_id(second) != key_id(first)
        place.run("UPDATE keys SET created = created - ?", MAX_UNLISTED + KEEP_KEY)
        issue(ledger)
        assert key_id(first) in ledger.changes_since(-1).jwks
        place.run("UPDATE tokens SET expires = ? WHERE kid = ?", int(time.time() - KEEP_KEY), key_id(first))
        issue(ledger)
        assert key_id(first) not in ledger.changes_since(-1).jwks
        assert key_id(second) in ledger.changes_since(-1).jwks


def test_an_old_key_is_published_until_its_last_token_that_is_not_listed_has_expired(place: Place) -> None:
    with place.ledger() as ledger:
        (first,) = ledger.signing_keys()
    place.run("UPDATE keys SET created = created - ?", int(ROTATE) + 1)
    with place.ledger() as ledger:
        assert signer_of(ledger.signing_keys(), time.time()).kid == first.key.kid
        assert signer_of(ledger.signing_keys(), time.time() + LEAD).kid != first.key.kid
        for passed, there in ((LEAD + MAX_UNLISTED + KEEP_KEY - 60, True), (61, False)):
            place.run("UPDATE keys SET created = created - ?", passed)
            issue(ledger)
            assert (first.key.kid in ledger.changes_since(-1).jwks) is there


def test_a_key_of_somebody_else_is_enough_unless_this_one_must_sign(place: Place) -> None:
    with place.ledger(SECRETS[:1]):
        pass
    with place.ledger(SECRETS[1:]) as stranger:
        assert stranger.signing_keys() == []
        stranger.rotate_keys(must_sign=True)
        (mine,) = stranger.signing_keys()
        stranger.rotate_keys(must_sign=True)
        assert [one.key.kid for one in stranger.signing_keys()] == [mine.key.kid]
        assert signer_of([mine], time.time()) == mine.key


def test_a_machine_has_two_secrets_at_most_which_are_kept_as_hashes(place: Place, ledger: Ledger) -> None:
    first = ledger.add_machine("etl", "worker")
    with pytest.raises(LedgerError, match="there is a machine 'etl' already: `machines rotate etl` makes another"):
        ledger.add_machine("etl", "admin")
    second, before = ledger.add_secret("etl")
    assert [one.id for one in before] == [split_secret(first)[0]]
    with pytest.raises(LedgerError, match=rf"remove-secret etl ID` \({split_secret(first)[0]} or "):
        ledger.add_secret("etl")
    with pytest.raises(LedgerError, match="there is no machine 'nobody': see `machines list`"):
        ledger.add_secret("nobody")
    (machine,) = ledger.machines()
    assert (machine.name, machine.role) == ("etl", "worker")
    for secret, kept in zip((first, second), machine.secrets, strict=True):
        secret_id, random = split_secret(secret)
        assert secret_id == kept.id
        assert verify_password(Users({"etl": kept.hash}), "etl", random)
        assert kept.hash not in repr(machine)
    assert first not in place.content()
    assert split_secret(first)[1] not in place.content()
    ledger.note_uses({machine.secrets[0].id: 1_000})
    assert [one.used for one in ledger.machines()[0].secrets] == [1_000, None]
    assert not ledger.remove_secret("ci", machine.secrets[0].id)
    assert ledger.remove_secret("etl", machine.secrets[0].id)
    assert not ledger.remove_secret("etl", machine.secrets[0].id)
    assert [one.id for one in ledger.machines()[0].secrets] == [split_secret(second)[0]]
    assert ledger.remove_machine("etl")
    assert not ledger.remove_machine("etl")
    assert ledger.machines() == ()
    assert place.rows("SELECT * FROM secrets") == []


@pytest.mark.parametrize("text", ["", "pfa", "pfa_", "pfa__", "secret", "PFA_0123_abc", "x_y_z"])
def test_what_is_no_secret_has_an_id_that_none_has(text: str) -> None:
    assert split_secret(text)[0] == ""


def test_tokens_are_listed_revoked_by_id_or_name_and_dropped_long_after_they_expired(ledger: Ledger) -> None:
    issue(ledger, "gone", lifetime=60, ago=KEEP_EXPIRED + 61)
    issue(ledger, "over", lifetime=60, ago=120)
    _, one = ledger.issue("etl", "worker", DAY, "us", "prefect")
    issue(ledger, "etl")
    issue(ledger, "ci")
    assert [token.name for token in ledger.tokens()] == ["ci", "etl", "etl", "over"]
    assert ledger.revoke(token_id=one.id) == [one]
    assert ledger.revoke(token_id=one.id) == []
    assert [token.name for token in ledger.revoke(name="etl")] == ["etl"]
    assert ledger.revoke(name="over") == []
    assert ledger.revoke(name="nobody") == []
    assert [token.name for token in ledger.tokens() if not token.ended(time.time())] == ["ci"]


def test_changes_are_what_a_revision_lacks_and_a_use_is_none(ledger: Ledger) -> None:
    issue(ledger, "one")
    revision = ledger.changes_since(-1).revision
    issue(ledger, "two")
    assert [one.name for one in ledger.changes_since(revision).tokens] == ["two"]
    revision = ledger.changes_since(-1).revision
    ledger.revoke(name="one")
    changes = ledger.changes_since(revision)
    assert [one.name for one in changes.tokens if one.revoked] == ["one"]
    ledger.note_uses({one.id: 1_000 for one in ledger.tokens()})
    ledger.note_uses({one.id: 900 for one in ledger.tokens()})
    assert ledger.changes_since(changes.revision).tokens == ()
    assert {one.used for one in ledger.tokens()} == {1_000}


def test_a_backup_opens_as_a_ledger_and_replaces_no_file(tmp_path: Path) -> None:
    target = tmp_path / "restored" / FILE
    target.parent.mkdir()
    with open_ledger(tmp_path) as ledger:
        token = issue(ledger)
        ledger.back_up(target)
        assert stat.S_IMODE(target.stat().st_mode) == 0o600
        with Ledger(SQLite(target.parent), rotate=ROTATE) as restored:
            assert restored.tokens() == ledger.tokens()
            assert key_id(issue(restored)) == key_id(token)
        with pytest.raises(LedgerError, match="name a new file"):
            ledger.back_up(target)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_a_folder_or_file_that_others_can_change_is_refused_with_its_cure(tmp_path: Path) -> None:
    folder = tmp_path / "tokens"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(LedgerError, match=r"everybody may write to it .* chmod go-w"):
        open_ledger(tmp_path).open()
    folder.chmod(0o700)
    (folder / FILE).touch(0o644)
    (folder / FILE).chmod(0o644)
    with pytest.raises(LedgerError, match="chmod 600"):
        open_ledger(tmp_path).open()


def test_what_is_no_ledger_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="No such file or directory: tokens"):
        Ledger(SQLite(tmp_path / "a" / "b"), rotate=ROTATE).open()
    (tmp_path / "file").touch()
    with pytest.raises(LedgerError, match="is not a folder"):
        Ledger(SQLite(tmp_path / "file"), rotate=ROTATE).open()
    folder = tmp_path / "tokens"
    folder.mkdir(mode=0o700)
    (folder / FILE).write_bytes(b"no database at all, but a text of some length" * 100)
    (folder / FILE).chmod(0o600)
    with pytest.raises(LedgerError, match="put a backup in its place"):
        open_ledger(tmp_path).open()
    (folder / FILE).unlink()


def test_a_later_ledger_is_refused(place: Place) -> None:
    database = place.database()
    with Ledger(database, rotate=ROTATE), database.transaction(writes=True):
        database.set_version(99)
    ledger = place.ledger()
    with pytest.raises(LedgerError, match=r"is of a later version \(99\): update this service"):
        ledger.open()
    with pytest.raises(LedgerError, match="is not"):  # open
        ledger.stamp()
    assert ledger.is_replaced()


def test_whoever_reads_sees_one_moment(place: Place, ledger: Ledger) -> None:
    reader = place.database()
    reader.open()
    with reader.transaction():
        before = reader.number("SELECT number FROM revision")
        issue(ledger)
        assert reader.number("SELECT number FROM revision") == before
        assert reader.run("SELECT id FROM tokens").fetchall() == []
    reader.close()


def test_a_revocation_of_another_issuers_token_is_kept_until_no_clock_lets_it_in(ledger: Ledger) -> None:
    now = int(time.time())
    ledger.revoke_of("https://idp", "later", now + 60)
    ledger.revoke_of("https://idp", "later", now + 30)  # never for a shorter time
    ledger.revoke_of("https://idp", "just-expired", now - 60)
    ledger.revoke_of("https://idp", "long-expired", now - KEEP_REVOKED - 1)
    revision = ledger.changes_since(-1).revision
    ledger.revoke_of("https://other", "later", now + 60)
    assert [(one.issuer, one.jti) for one in ledger.changes_since(revision).revoked] == [("https://other", "later")]
    assert {one.jti for one in ledger.changes_since(-1).revoked} == {"later", "just-expired"}
    assert [(one.issuer, one.jti, one.expires - now) for one in ledger.revocations()] == [
        ("https://idp", "later", 60),
        ("https://other", "later", 60),
    ]


def test_a_ledger_of_the_first_version_is_brought_up_to_date_and_keeps_its_tokens(place: Place) -> None:
    old = place.database()
    old.open()
    with old.transaction(writes=True):
        for statement in filter(str.strip, ledger_module._SCHEMA[0].split(";")):
            old.run(statement)
        old.set_version(1)
        old.run(FIRST_INSERT, ("an-id", "etl", "worker", "kid", 1, int(time.time()) + 60, None, None, 0))
    old.close()
    with place.ledger() as ledger:
        assert [(one.name, one.owner) for one in ledger.tokens()] == [("etl", "")]
        ledger.revoke_of("https://idp", "one", int(time.time()) + 60)
        assert len(ledger.revocations()) == 1
        ledger.add_machine("etl", "worker")
    assert place.version() == len(ledger_module._SCHEMA)


def test_whatever_changes_shows_also_in_the_process_that_changed_it(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the service would not publish the key that it has made itself."""
    before = ledger.stamp()
    assert ledger.stamp() == before
    monkeypatch.setattr(ledger, "_rotate", -1.0)
    ledger.rotate_keys()
    assert ledger.stamp() != before


# of people --------------------------------------------------------------------------------------------------


def test_a_person_has_a_bounded_number_of_tokens_and_revokes_only_those(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "MAX_OWNED", 2)
    monkeypatch.setattr(ledger_module, "MAX_OWNED_A_DAY", 4)
    ada, bob = owner_of("local", "ada"), owner_of("local", "bob")
    (first, second) = (owned(ledger, ada) for _ in range(2))
    other, operators = owned(ledger, bob), owned(ledger, "")
    with pytest.raises(TooManyTokensError, match="valid"):
        owned(ledger, ada)
    for not_hers in (other.id, operators.id):
        assert ledger.revoke_owned(ada, not_hers) == []
    assert ledger.revoke_owned(ada, first.id) == [first]
    assert ledger.revoke_owned(ada, first.id) == []
    assert ledger.tokens_of(ada) == [second]
    third = owned(ledger, ada)
    assert {one.id for one in ledger.revoke_owned(ada)} == {second.id, third.id}
    owned(ledger, ada)
    with pytest.raises(TooManyTokensError, match="day"):
        owned(ledger, ada)
    assert len(ledger.tokens()) == 6
    assert ledger.tokens_of(bob) == [other]
    for _ in range(5):
        issue(ledger)


# killed in the middle -------------------------------------------------------------------------------------

BUSY = """
import sys
from pathlib import Path
from service.issuing.ledger import Ledger
from service.issuing.postgresql import PostgreSQL
from service.issuing.sqlite import SQLite

place = sys.argv[1]
ledger = Ledger(PostgreSQL(place) if "://" in place else SQLite(Path(place)), rotate=86_400)
ledger.open()
while True:
    kept = ledger.issue("kept", "worker", 3600, "us", "prefect")[1]
    print("issued", kept.id, flush=True)
    lost = ledger.issue("lost", "worker", 3600, "us", "prefect")[1]
    ledger.revoke(token_id=lost.id)
    print("revoked", lost.id, flush=True)
    ledger.revoke_of("https://idp", lost.id, 4_000_000_000)
    print("foreign", lost.id, flush=True)
    name = lost.id
    ledger.add_machine(name, "worker")
    print("added", name, flush=True)
    ledger.add_secret(name)
    print("rotated", name, flush=True)
    ledger.remove_machine(name)
    print("removed", name, flush=True)
"""


SAID = re.compile(
    r"(issued|revoked|foreign|added|rotated|removed) ([0-9a-f]{16})"
)  # not the part of a line that a buffer left


def test_a_process_that_is_killed_in_the_middle_loses_nothing_that_it_said(place: Place, tmp_path: Path) -> None:
    """Kill -9 two processes that issue and revoke at once, again and again: what they have said is there."""
    said: set[tuple[str, str]] = set()
    with place.ledger() as ledger:
        for kill in range(int(os.environ.get("TEST_KILLS", KILLS))):
            outputs = [tmp_path / f"{kill}-{number}" for number in range(2)]
            busy = []
            for output in outputs:
                with output.open("wb") as stdout:
                    busy.append(subprocess.Popen([sys.executable, "-c", BUSY, place.argument], stdout=stdout, cwd=ROOT))
            for output in outputs:
                wait_until(lambda output=output: output.stat().st_size > 0, timeout=60, what="both at work")
            time.sleep(secrets.randbelow(50) / 1_000)
            for process in busy:
                process.kill()
                process.wait(10)
            lines = [line for output in outputs for line in output.read_text().splitlines()]
            said |= {(found[1], found[2]) for line in lines if (found := SAID.fullmatch(line))}
            listed = {one.id: one for one in ledger.tokens()}
            assert {token_id for _, token_id in said} <= set(listed)
            assert all((listed[token_id].revoked is None) == (word == "issued") for word, token_id in said)
            assert {token_id for word, token_id in said if word == "foreign"} <= {x.jti for x in ledger.revocations()}
            machines = {one.name: len(one.secrets) for one in ledger.machines()}
            assert all(count in {1, 2} for count in machines.values()), "a machine without its secrets"
            added, rotated, removed = (
                {name for word, name in said if word == done} for done in ("added", "rotated", "removed")
            )
            assert not removed & set(machines)
            for name in added - set(machines):  # removed by a process that could not say so any more
                assert name in rotated
            assert all(machines.get(name, 2) == 2 for name in rotated)
            assert place.rows("SELECT * FROM secrets WHERE machine NOT IN (SELECT name FROM machines)") == []
            if isinstance(place.database(), SQLite):
                assert place.rows("PRAGMA integrity_check") == [("ok",)]
            issue(ledger)  # nobody holds a lock
        assert len(said) > kill
