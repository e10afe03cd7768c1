"""The token that service and client share."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from cryoray.errors import SettingsError
from cryoray.protocol.token import check_strength, find_token, token_file


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("CRYORAY_TOKEN", raising=False)
    monkeypatch.setenv("CRYORAY_TOKEN_FILE", str(tmp_path / "config" / "token"))
    return token_file()


def test_the_first_start_makes_a_file_for_its_owner_alone(file: Path) -> None:
    token = find_token(create=True)
    assert len(token) >= 32
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(file.parent.iterdir()) == [file]
    assert find_token() == find_token(create=True) == token


def test_a_given_token_wins_over_the_variable_and_the_variable_over_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of_the_file = find_token(create=True)
    monkeypatch.setenv("CRYORAY_TOKEN", "of the variable")
    assert find_token("given") == "given"
    assert find_token() == "of the variable"
    monkeypatch.delenv("CRYORAY_TOKEN")
    assert find_token() == of_the_file


def test_a_client_makes_no_token_but_says_where_one_belongs(file: Path) -> None:
    with pytest.raises(SettingsError, match=rf"{file}: there is no token .* CRYORAY_TOKEN"):
        find_token()
    assert not file.exists()


def test_an_empty_token_is_none(file: Path) -> None:
    file.parent.mkdir()
    file.write_text("\n")
    with pytest.raises(SettingsError, match="empty"):
        find_token(create=True)


def test_a_file_that_others_could_read_is_closed_to_them(file: Path) -> None:
    token = find_token(create=True)
    file.chmod(0o666)
    assert find_token() == token
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_file_of_somebody_else_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_token(create=True)
    owner = file.stat().st_uid
    monkeypatch.setattr("os.getuid", lambda: owner + 1)
    if owner:
        with pytest.raises(SettingsError, match="belongs to somebody else"):
            find_token()
    else:
        os.chown(file, 12345, -1)
        with pytest.raises(SettingsError, match="belongs to somebody else"):
            find_token()


@pytest.mark.parametrize("token", ["a", "x" * 15])
def test_a_service_takes_no_token_that_can_be_guessed(token: str) -> None:
    with pytest.raises(SettingsError, match="can be guessed"):
        check_strength(token)
    assert check_strength("x" * 16)
