"""Where a redis-py client is connected to, as a URL of the engine."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import quote
from weakref import WeakKeyDictionary

from redis.credentials import UsernamePasswordCredentialProvider

from .._errors import Unsupported

_TLS_OF_ITS_OWN = ("ssl_ca_certs", "ssl_ca_path", "ssl_ca_data", "ssl_certfile", "ssl_keyfile")


def url_of(client: Any) -> str:
    """The URL of the server that `client` talks to.

    Raises:
        Unsupported: The client's settings are not for one plain server, or are ones that the engine does not have.
    """
    pool: Any = getattr(client, "connection_pool", None)
    settings = getattr(pool, "connection_kwargs", None)
    if settings is None or "connection_pool" in settings:
        raise Unsupported(f"{type(client).__name__} is no client of one Redis server")
    tls = "SSL" in pool.connection_class.__name__
    if tls and (any(settings.get(name) for name in _TLS_OF_ITS_OWN) or _is_unverified(settings)):
        raise Unsupported("certificates of their own, or none, are not supported: the system's are used")
    user, password = _credentials(settings)
    database = int(settings.get("db") or 0)
    path = settings.get("path")
    if path:
        query = f"?db={database}" + (f"&user={quote(user)}" if user else "")
        return f"redis+unix://{quote(path)}{query}" + (f"&pass={quote(password)}" if password else "")
    login = f"{quote(user, '')}:{quote(password, '')}@" if user or password else ""
    host = settings.get("host") or "localhost"
    host = f"[{host}]" if ":" in host else host
    return f"{'rediss' if tls else 'redis'}://{login}{host}:{settings.get('port') or 6379}/{database}"


def node_timeout_of(client: Any) -> float | None:
    """Seconds that the server may take to answer, if the client says so."""
    timeout = client.connection_pool.connection_kwargs.get("socket_timeout")
    return float(timeout) if timeout else None


def _is_unverified(settings: dict[str, Any]) -> bool:
    required = settings.get("ssl_cert_reqs", "required")
    return str(getattr(required, "name", required)).lower() not in ("required", "cert_required")


def _credentials(settings: dict[str, Any]) -> tuple[str, str]:
    provider = settings.get("credential_provider")
    if provider is None:
        return str(settings.get("username") or ""), str(settings.get("password") or "")
    if type(provider) is not UsernamePasswordCredentialProvider:
        raise Unsupported("what a credential provider of one's own gives may change, and the engine would not know")
    given: Any = provider.get_credentials()  # type: ignore[no-untyped-call]
    return ("", str(given[0])) if len(given) == 1 else (str(given[0] or ""), str(given[1] or ""))


class Managers:
    """One manager for each client and process; none for a client whose server the engine cannot reach by itself."""

    def __init__(self, connect: Any) -> None:
        self._connect = connect
        self._managers: WeakKeyDictionary[Any, tuple[int, Any]] = WeakKeyDictionary()

    def of(self, client: Any, *, needed: bool) -> Any:
        """The manager on the server of `client`, after a fork a new one.

        Where there can be none it is `None`, or if it is `needed`, `Unsupported` is raised.
        """
        found = self._managers.get(client)
        if found is None or found[0] != os.getpid():
            found = self._managers[client] = (os.getpid(), self._made(client))
        if needed and found[1] is None:
            url_of(client)  # says why
        return found[1]

    def _made(self, client: Any) -> Any:
        try:
            url = url_of(client)
        except Unsupported:
            return None
        return self._connect(url, node_timeout=node_timeout_of(client))
