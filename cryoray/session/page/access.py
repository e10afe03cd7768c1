"""Who may see and say what: bearer tokens for programs, and for browsers a cookie that a token buys.

A session's token opens that session alone, the operator's opens all. The cookie holds no token: what it
is for, who it is, until when, and a signature with a key that the operator's token makes; a session's
renewed token ends the cookies that the old one bought. What a cookie does, and not only sees, needs a
word that other sites cannot know (CSRF), and comes from our own pages as far as the browser tells.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from dataclasses import dataclass
from hmac import compare_digest
from urllib.parse import urlsplit

from fastapi import Request

from cryoray.errors import InputError
from cryoray.session.ledger import OPERATOR, Ledger

COOKIE = "cryoray"
#: A cookie's life: a long session's nights and days, seconds.
_LIFE = 7 * 24 * 3600
_LONGEST_NAME = 80


class NoEntryError(InputError):
    """Nobody who may come in."""


class ForbiddenError(InputError):
    """Somebody who may not do this."""


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who asks.

    Attributes:
        scope: the session that they may see, or ``OPERATOR`` for all.
        who: the name they gave.
        csrf: the word that forms must hold; '' where a bearer token came with the request.
    """

    scope: str
    who: str
    csrf: str = ""

    def may(self, session: str) -> bool:
        """Whether they may see this session, and say something in it."""
        return self.scope in (OPERATOR, session)


class Access:
    """Tells who asks.

    Args:
        ledger: knows the sessions' tokens.
        operator: the operator's token.
    """

    def __init__(self, ledger: Ledger, operator: str) -> None:
        self._ledger, self._operator = ledger, operator.encode()
        self._key = hashlib.sha256(b"cookies of cryoray\0" + self._operator).digest()

    def scope(self, token: str) -> str | None:
        """What a token opens."""
        if compare_digest(token.encode(), self._operator):
            return OPERATOR
        return self._ledger.scope(token)

    def visitor(self, request: Request) -> Visitor | None:
        """Who asks, None where nobody is known."""
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            scope = self.scope(token.strip())
            return (
                Visitor(scope, "the operator" if scope == OPERATOR else "the session's owner")
                if scope
                else None
            )
        return self._from_cookie(request.cookies.get(COOKIE, ""))

    def cookie(self, scope: str, who: str) -> str:
        """A cookie for what a token opened."""
        said = {"scope": scope, "who": who[:_LONGEST_NAME], "until": time.time() + _LIFE}
        said["token"] = self._mark(scope)
        body = base64.urlsafe_b64encode(json.dumps(said).encode()).decode().rstrip("=")
        return f"{body}.{self._sign(body)}"

    def _from_cookie(self, cookie: str) -> Visitor | None:
        body, _, signature = cookie.rpartition(".")
        if not body or not compare_digest(signature.encode(), self._sign(body).encode()):
            return None
        said = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        if said["until"] < time.time() or said["token"] != self._mark(said["scope"]):
            return None
        return Visitor(said["scope"], said["who"], self._sign(f"csrf\0{cookie}"))

    def _mark(self, scope: str) -> str:
        """Changes when the session's token does."""
        if scope == OPERATOR:
            return ""
        row = self._ledger.session(scope)
        return row.token_hash[:16] if row is not None else "gone"

    def _sign(self, text: str) -> str:
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()


def check_origin(request: Request) -> None:
    """Refuse what another site had the browser send.

    Raises:
        ForbiddenError: the browser says that it comes from elsewhere.
    """
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    if site is None:  # an older browser, or a program; a proxy may have taken the scheme
        elsewhere = origin is not None and urlsplit(origin).netloc != request.headers.get("Host")
    else:
        elsewhere = site not in ("same-origin", "none")
    if elsewhere:
        raise ForbiddenError("this was sent by another site")


def check_csrf(visitor: Visitor, given: str) -> None:
    """Refuse what a cookie does without the word that only our pages know.

    Raises:
        ForbiddenError: the word is missing or wrong.
    """
    if visitor.csrf and not compare_digest(given.encode(), visitor.csrf.encode()):
        raise ForbiddenError(
            "the page is too old, or this did not come from it", remedy="reload it"
        )
