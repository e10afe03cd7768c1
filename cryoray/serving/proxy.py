"""What Ray Serve's proxy, which is uvicorn, does beyond that: it gives up connections on which nothing moves.

Ray calls `callback` in the proxy's process where ``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`` names it.
"""

from __future__ import annotations

from starlette.middleware import Middleware
from uvicorn.protocols.http import auto

from cryoray.web.server import with_deadline

#: The variable, and what it is set to.
VARIABLE, CALLBACK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "cryoray.serving.proxy.callback"


def callback() -> list[Middleware]:
    """Have servers that are made from now on in this process close such connections."""
    auto.AutoHTTPProtocol = with_deadline(auto.AutoHTTPProtocol)
    return []
