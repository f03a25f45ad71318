"""Which requests come from where they should: no page of a stranger may ask, in any browser.

A page of another site can send requests to this machine, and by changing what its own name stands for
(DNS rebinding) it can even read the replies. The first names its site in `Origin`, the second names it
in `Host`, and both are refused.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping
from urllib.parse import urlsplit


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a server that listens at an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def allowed_names(host: str) -> frozenset[str]:
    """Return the names, beside addresses, that clients may call a server by.

    Args:
        host: name or address that it listens at.
    """
    if is_loopback(host):
        return frozenset({"localhost", host.lower()})
    own = socket.gethostname().lower()
    return frozenset({"localhost", host.lower(), own, f"{own.partition('.')[0]}.local"})


def refusal(headers: Mapping[str, str | None], host: str) -> str | None:
    """Say why a request is refused for where it comes from; None: it is not.

    Args:
        headers: `Host` and `Origin`, None where they are missing.
        host: name or address that the server listens at.
    """
    named = _hostname(headers["Host"])
    if named is None or not _is_ours(named, host):
        return "the Host header does not name this server; use the address that it printed"
    origin = headers["Origin"]
    if origin is not None and origin.lower() != f"http://{headers['Host']}".lower():
        return "pages of other sites may not use this server"
    return None


def _hostname(header: str | None) -> str | None:
    try:
        return urlsplit(f"//{header}").hostname if header else None
    except ValueError:
        return None


def _is_ours(named: str, host: str) -> bool:
    """Return whether a name is the server's. An address is: no stranger's name stands for it."""
    if named in allowed_names(host):
        return True
    try:
        address = ipaddress.ip_address(named)
    except ValueError:
        return False
    return address.is_loopback or not is_loopback(host)
