"""The proxy between this machine and a job server. Over http it reads every request, and with it the token."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit, urlunsplit

import requests.utils


def find_proxy(address: str) -> str | None:
    """The URL of the proxy that requests to an address go through, without its password; None if there is none.

    It comes from the environment: `http_proxy`, `https_proxy`, `all_proxy`, `no_proxy`. Requests to this machine go
    through none, whatever the environment says.

    Args:
        address: http://HOST:PORT or https://HOST:PORT.
    """
    if is_loopback(urlsplit(address).hostname or ""):
        return None
    found = requests.utils.select_proxy(address, requests.utils.get_environ_proxies(address, no_proxy=None))
    if not found:
        return None
    url = urlsplit(found if "://" in found else f"http://{found}")
    return urlunsplit((url.scheme, url.netloc.rpartition("@")[2], "", "", ""))


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost" or host.lower().rstrip(".").endswith(".localhost")
