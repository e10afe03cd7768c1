"""The token that service and client share."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from cryoray.errors import SettingsError
from cryoray.protocol.token import find_token, token_file


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
