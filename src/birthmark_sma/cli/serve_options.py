"""The options of `sma serve` that concern who reaches it, and how."""

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
