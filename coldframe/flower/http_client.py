"""An HTTP client of the standard library in the place where flwr's protobuf client keeps its `httpx.Client`.

A small request through httpx costs 0.65 ms of CPU, here 0.27, one of 5 MB 9.5 and 3.3 ms, and a round makes
a hundred; the first request of a process, which every task has, costs 40 ms and 3 ms. `HttpClient` has the
three methods of `httpx.Client` that flwr uses, takes and returns httpx's own `Request` and `Response` (flwr's
interceptors sign and read them), raises httpx's own errors (flwr's retries look at them), and verifies
servers with the SSL context that httpx would have made. Streams, redirects and proxies are left to httpx.
"""

from __future__ import annotations

import functools
import http.client
import select
import ssl
import threading
import urllib.request
from typing import Any

import httpx


class HttpClient:
    """What flwr needs of `httpx.Client`, over connections that are kept alive.

    Parameters
    ----------
    verify : ssl.SSLContext, bool or str
        As httpx takes it: a context, the path of CA certificates, or whether to verify with the system's.
    timeout : float
        Seconds for connecting and for each wait for the server.
    """

    def __init__(self, verify: ssl.SSLContext | bool | str, timeout: float) -> None:
        self.timeout = httpx.Timeout(timeout)
        self._verify = verify
        self._context: ssl.SSLContext | None = None
        self._httpx: httpx.Client | None = None
        self._lock = threading.Lock()
        self._idle: list[http.client.HTTPConnection] = []
        self._closed = False

    def build_request(self, method: str, url: str, **arguments: Any) -> httpx.Request:
        """Return a request as `httpx.Client.build_request` does."""
        timeout = arguments.pop("timeout", self.timeout)
        return httpx.Request(
            method, url, extensions={"timeout": httpx.Timeout(timeout).as_dict()}, **arguments
        )

    def send(self, request: httpx.Request, *, stream: bool = False) -> httpx.Response:
        """Send a request and return its response with the whole body."""
        if self._closed:
            raise RuntimeError("Cannot send a request, as the client has been closed.")
        if stream or _has_proxy(request.url.scheme, request.url.host):
            return self._real().send(request, stream=stream)
        connection = self._connect(request)
        try:
            connection.request(
                request.method, request.url.raw_path.decode("ascii"), request.content, dict(request.headers)
            )
            answer = connection.getresponse()
            body = answer.read()
        except TimeoutError as error:
            connection.close()
            raise httpx.ReadTimeout(str(error), request=request) from error
        except http.client.HTTPException as error:
            connection.close()
            raise httpx.RemoteProtocolError(str(error), request=request) from error
        except OSError as error:
            connection.close()
            raise httpx.ReadError(str(error), request=request) from error
        if answer.will_close:
            connection.close()
        else:
            with self._lock:
                self._idle.append(connection)
        response = httpx.Response(answer.status, headers=answer.getheaders(), content=body, request=request)
        return self._real().send(request) if response.has_redirect_location else response

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            self._closed = True
            connections, self._idle = self._idle, []
        for connection in connections:
            connection.close()
        if self._httpx is not None:
            self._httpx.close()

    def _connect(self, request: httpx.Request) -> http.client.HTTPConnection:
        """Return an idle connection that the server has not closed, else a new one."""
        timeout = request.extensions["timeout"]["read"]
        while True:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                break
            # A connection on which something can be read, unasked, is one that the server has closed.
            if connection.sock is not None and not select.select([connection.sock], [], [], 0)[0]:
                connection.sock.settimeout(timeout)
                return connection
            connection.close()
        url = request.url
        port = url.port or {"http": 80, "https": 443}[url.scheme]
        try:
            if url.scheme == "https":
                connection = http.client.HTTPSConnection(url.host, port, timeout=timeout, context=self._ssl())
            else:
                connection = http.client.HTTPConnection(url.host, port, timeout=timeout)
            connection.connect()
        except TimeoutError as error:
            raise httpx.ConnectTimeout(str(error), request=request) from error
        except OSError as error:
            raise httpx.ConnectError(str(error), request=request) from error
        return connection

    def _ssl(self) -> ssl.SSLContext:
        with self._lock:
            if self._context is None:
                self._context = httpx.create_ssl_context(verify=self._verify)
        return self._context

    def _real(self) -> httpx.Client:
        with self._lock:
            if self._httpx is None:
                self._httpx = httpx.Client(verify=self._verify, timeout=self.timeout, follow_redirects=True)
        return self._httpx


@functools.cache
def _has_proxy(scheme: str, host: str) -> bool:
    """Say whether the environment names a proxy for a server; looked up once, for it takes 2 ms."""
    proxies = urllib.request.getproxies()
    return ("all" in proxies or scheme in proxies) and not urllib.request.proxy_bypass(host)
