"""The options of `sma serve` for TLS, trusted proxies, logs and traces.

The help texts are public: the frozen surface of the command line lists them.
"""

from pathlib import Path
from typing import Annotated

import typer

TlsCert = Annotated[
    Path | None,
    typer.Option(help="Serve HTTPS with this certificate chain, as PEM. [SMA_TLS_CERT]"),
]
TlsKey = Annotated[
    Path | None, typer.Option(help="The certificate's private key, as PEM. [SMA_TLS_KEY]")
]
TlsClientCa = Annotated[
    Path | None,
    typer.Option(help="CAs, as PEM, of the certificates that callers show. [SMA_TLS_CLIENT_CA]"),
]
TlsSelf = Annotated[
    bool | None,
    typer.Option(
        "--tls-self",
        help="Serve HTTPS with a certificate for this machine, made here. [SMA_TLS_SELF]",
        show_default=False,
    ),
]
TrustedProxies = Annotated[
    str | None,
    typer.Option(
        help="Addresses and networks, by commas, whose X-Forwarded-For and Forwarded are believed."
        " [SMA_TRUSTED_PROXIES]"
    ),
]
LogFormat = Annotated[
    str | None,
    typer.Option(help="auto, json or pretty; auto is pretty on a terminal. [SMA_LOG_FORMAT, auto]"),
]
LogLevel = Annotated[
    str | None,
    typer.Option(help="debug, info, warning or error. [SMA_LOG_LEVEL, info]"),
]
TracesUrl = Annotated[
    str | None,
    typer.Option(
        help="An OpenTelemetry collector, as http://127.0.0.1:4318, to send traces to."
        " [SMA_TRACES_URL]"
    ),
]
SlowQueryMs = Annotated[
    float | None,
    typer.Option(help="Milliseconds after which a statement is slow. [SMA_SLOW_QUERY_MS, 1000]"),
]
