"""Where a redis-py client is connected to, as a URL of the engine."""

from __future__ import annotations

import os
from copy import deepcopy
from typing import Any
from urllib.parse import quote, urlencode
from weakref import WeakKeyDictionary

from redis.credentials import UsernamePasswordCredentialProvider

from .._base import native_manager
from .._errors import Unsupported

_TLS_OPTIONS = {"ssl_ca_certs": "ca", "ssl_certfile": "cert", "ssl_keyfile": "key"}
_TLS_OF_ITS_OWN = ("ssl_ca_path", "ssl_ca_data", "ssl_password", "ssl_validate_ocsp", "ssl_ciphers")


FOR_EVER = 2**32 - 1

SILENCE = 15
"""Tries that a server which says nothing is given: half a minute, as each takes up to two seconds."""


def url_of(client: Any) -> str:
    """The URL of the server, the cluster or the primary behind sentinels that `client` talks to.

    Raises:
        Unsupported: Its settings are ones that the engine does not have.
    """
    nodes = getattr(client, "nodes_manager", None)
    if nodes is not None:
        _refuse_own_connections(getattr(client, "user_on_connect_func", None), None)
        return _cluster(nodes, getattr(client, "connection_kwargs", None) or nodes.connection_kwargs)
    pool: Any = getattr(client, "connection_pool", None)
    settings: dict[str, Any] | None = getattr(pool, "connection_kwargs", None)
    if settings is None:
        raise Unsupported(f"{type(client).__name__} is no client of Redis")
    _refuse_own_connections(settings.get("redis_connect_func"), pool.connection_class)
    tls = _is_tls(pool.connection_class)
    sentinel = getattr(pool, "sentinel_manager", None)
    if sentinel is not None:
        return _sentinel(pool, sentinel.sentinels, settings, tls)
    options = _tls_options(settings) if tls else {}
    database = int(settings.get("db") or 0)
    if settings.get("path"):
        user, password = _credentials(settings)
        options = {"db": str(database)} | ({"user": user} if user else {}) | ({"pass": password} if password else {})
        return _url("redis+unix", "", quote(settings["path"]), options)
    return _url("rediss" if tls else "redis", _login(settings) + _address(settings), f"/{database}", options)


def _refuse_own_connections(connect_func: Any, connection_class: Any) -> None:
    """What they do, as to log in by a way of their own or to reach no server at all, the engine would not do."""
    if connect_func is not None:
        raise Unsupported("the engine does not call a redis_connect_func")
    if connection_class is not None and connection_class.__module__.partition(".")[0] != "redis":
        raise Unsupported(f"the engine does not connect by {connection_class.__name__}")


def _cluster(nodes: Any, settings: dict[str, Any]) -> str:
    if getattr(nodes, "address_remap", None) is not None:
        raise Unsupported("the addresses of a cluster are not remapped")
    tls = bool(settings.get("ssl")) or _is_tls(settings.get("connection_class"))
    hosts = ",".join(_address({"host": node.host, "port": node.port}) for node in list(nodes.startup_nodes.values()))
    options = _tls_options(settings) if tls else {}
    return _url("rediss+cluster" if tls else "redis+cluster", _login(settings) + hosts, "", options)


def _sentinel(pool: Any, sentinels: list[Any], settings: dict[str, Any], tls: bool) -> str:
    if not pool.is_master:
        raise Unsupported("locks are kept on the primary, not on its replicas")
    pools = [sentinel.connection_pool for sentinel in sentinels]
    logins = {_credentials(each.connection_kwargs) for each in pools}
    if len(logins) != 1 or any(_is_tls(each.connection_class) != tls for each in pools):
        raise Unsupported("all sentinels have one log-in, and TLS if the primary has it")
    hosts = ",".join(_address(each.connection_kwargs) for each in pools)
    ((user, password),) = logins
    options = _tls_options(settings) if tls else {}
    options |= ({"sentinel_user": user} if user else {}) | ({"sentinel_password": password} if password else {})
    path = f"/{quote(pool.service_name, '')}/{int(settings.get('db') or 0)}"
    return _url("rediss+sentinel" if tls else "redis+sentinel", _login(settings) + hosts, path, options)


def _url(scheme: str, hosts: str, path: str, options: dict[str, str]) -> str:
    query = f"?{urlencode(options, quote_via=quote, safe='')}" if options else ""
    return f"{scheme}://{hosts}{path}{query}"


def _login(settings: dict[str, Any]) -> str:
    user, password = _credentials(settings)
    return f"{quote(user, '')}:{quote(password, '')}@" if user or password else ""


def _address(settings: dict[str, Any]) -> str:
    host = settings.get("host") or "localhost"
    return f"{f'[{host}]' if ':' in host else host}:{settings.get('port') or 6379}"


def _is_tls(connection_class: Any) -> bool:
    return "SSL" in getattr(connection_class, "__name__", "")


def _tls_options(settings: dict[str, Any]) -> dict[str, str]:
    required = settings.get("ssl_cert_reqs", "required")
    verified = str(getattr(required, "name", required)).lower() in ("required", "cert_required")
    if not verified or settings.get("ssl_check_hostname") is False:
        raise Unsupported("a server's certificate and its host name are always verified")
    for name in _TLS_OF_ITS_OWN:
        if settings.get(name):
            raise Unsupported(f"the engine has no option for {name}")
    return {ours: str(settings[name]) for name, ours in _TLS_OPTIONS.items() if settings.get(name)}


def node_timeout_of(client: Any) -> float | None:
    """Seconds that the server may take to answer, if the client says so."""
    timeout = _connection_settings(client).get("socket_timeout")
    return float(timeout) if timeout else None


def patience_of(client: Any) -> tuple[int, int, float]:
    """How often the server is tried again, how often by who waits if it says nothing, and for how many seconds."""
    settings = _connection_settings(client)
    retry: Any = getattr(client, "retry", None) or settings.get("retry")
    if retry is None:
        retries, pause = int(bool(settings.get("retry_on_error") or settings.get("retry_on_timeout"))), 0.0
    elif retry._retries < 0:
        retries, pause = FOR_EVER, 0.0
    else:
        retries, backoff = retry._retries, deepcopy(retry._backoff)
        backoff.reset()
        pause = sum(max(backoff.compute(failures), 0.0) for failures in range(1, retries + 1))
    # Without a timeout the client waits for an answer for as long as the server is silent.
    return retries, retries if settings.get("socket_timeout") else max(retries, SILENCE), pause


def _connection_settings(client: Any) -> dict[str, Any]:
    pool = getattr(client, "connection_pool", None)
    settings: dict[str, Any] = (client.nodes_manager if pool is None else pool).connection_kwargs
    return settings


def _credentials(settings: dict[str, Any]) -> tuple[str, str]:
    provider = settings.get("credential_provider")
    if provider is None:
        return str(settings.get("username") or ""), str(settings.get("password") or "")
    if type(provider) is not UsernamePasswordCredentialProvider:
        raise Unsupported("what a credential provider of one's own gives may change, and the engine would not know")
    given: Any = provider.get_credentials()  # type: ignore[no-untyped-call]
    return ("", str(given[0])) if len(given) == 1 else (str(given[0] or ""), str(given[1] or ""))


class Managers:
    """One for each pool of connections and process; none where the engine cannot reach the server by itself."""

    def __init__(self, manager: Any) -> None:
        self._manager = manager
        self._managers: WeakKeyDictionary[Any, tuple[int, Any]] = WeakKeyDictionary()

    def of(self, client: Any, *, needed: bool) -> Any:
        """The manager on the server of `client`, after a fork a new one.

        Where there can be none it is `None`, or if it is `needed`, `Unsupported` is raised.
        """
        # Clients come and go, one for each request, where their pool stays.
        pool = getattr(client, "connection_pool", client)
        found = self._managers.get(pool)
        if found is None or found[0] != os.getpid():
            found = self._managers[pool] = (os.getpid(), self._made(client))
        if needed and found[1] is None:
            url_of(client)  # says why
        return found[1]

    def _made(self, client: Any) -> Any:
        try:
            url = url_of(client)
            return self._manager(
                native_manager(url, node_timeout=node_timeout_of(client), patience=patience_of(client))
            )
        except Unsupported:
            return None
