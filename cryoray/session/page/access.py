"""Who may see and change what: bearer tokens for programs, and for browsers a cookie that a token buys.

A session's token opens that session alone, the operator's opens all. The cookie is a word by which who came
in is looked up (`session.page.logins`), until they leave; a renewed token ends the cookies that the old one
bought. After a wrong token the answer is late. What a cookie does, and not only sees, needs a
word that other sites cannot know (CSRF), and comes from our own pages as far as the browser tells.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from hmac import compare_digest

from fastapi import Request

from cryoray.session.ledger import Ledger
from cryoray.session.ledger_sessions import OPERATOR
from cryoray.session.page.logins import Logins
from cryoray.web.guard import BusyError, ForbiddenError

COOKIE = "cryoray"
#: Seconds that the answer to a wrong token is late, for each that waits; and how many may wait.
_DELAY, _WAITING = 0.5, 8
_LONGEST_NAME = 80


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
        self._operator_mark = hashlib.sha256(b"operator\0" + self._operator).hexdigest()[:16]
        self._logins, self._waiting = Logins(ledger), 0

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
        return self._logins.begin(scope, who[:_LONGEST_NAME], self._mark(scope))

    def leave(self, request: Request) -> None:
        """End what the cookie of a request is good for."""
        self._logins.end(request.cookies.get(COOKIE, ""))

    async def refuse(self) -> None:
        """Wait, after a wrong token, so that guessing is slow."""
        self._waiting += 1
        try:
            await asyncio.sleep(_DELAY * self._waiting)
        finally:
            self._waiting -= 1

    def check_calm(self) -> None:
        """Refuse to look at a token while many wait after wrong ones.

        Raises:
            BusyError: so it is.
        """
        if self._waiting >= _WAITING:
            raise BusyError("too many wrong tokens were given", remedy="try again in a moment")

    def _from_cookie(self, cookie: str) -> Visitor | None:
        login = self._logins.find(cookie)
        if login is None or login.mark != self._mark(login.scope):
            return None
        return Visitor(login.scope, login.who, login.csrf)

    def _mark(self, scope: str) -> str:
        """Changes when the token does that opens a scope."""
        if scope == OPERATOR:
            return self._operator_mark
        row = self._ledger.session(scope)
        return row.token_hash[:16] if row is not None else "gone"


def check_csrf(visitor: Visitor, given: str) -> None:
    """Refuse what a cookie does without the word that only our pages know.

    Raises:
        ForbiddenError: the word is missing or wrong.
    """
    if visitor.csrf and not compare_digest(given.encode(), visitor.csrf.encode()):
        raise ForbiddenError(
            "the page is too old, or this did not come from it", remedy="reload it"
        )
