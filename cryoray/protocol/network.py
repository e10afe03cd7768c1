"""Which addresses are reached through a proxy that the environment names: those outside, and no others."""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit


def by_proxy(url: str) -> bool:
    """Whether a proxy of the environment (``http_proxy``) may be used for an address.

    Not for this machine nor one of a private network: a proxy there, set for the web, would receive the
    bearer token. A name that cannot be resolved here may well be known to the proxy.
    """
    host = urlsplit(url).hostname or ""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return bool(host) and host != "localhost" and "." in host
    addresses = {ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found}
    return any(address.is_global for address in addresses)
