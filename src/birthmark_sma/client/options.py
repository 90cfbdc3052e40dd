"""How patient a client is, how often it asks again, and how much it asks at once."""

from dataclasses import dataclass
from math import isfinite

from birthmark_sma.errors import ConfigurationError

MAX_BATCH = 1_000
"""As many camera tokens as the authority takes in one request."""


@dataclass(frozen=True, slots=True)
class Options:
    """All in seconds or counts. Raises ConfigurationError for what cannot be.

    deadline           a call has its outcome after this long, whatever happens
    connect_timeout    for a connection to come about
    read_timeout       for the next part of an answer
    pool_timeout       for a connection of the pool to become free
    attempts           how often one question is sent at most
    backoff, max_backoff   the n-th wait is drawn from 0..min(max_backoff, backoff * 2**n)
    circuit_failures   so many failures in a row open the circuit,
    circuit_rest       for so long
    max_batch          so many camera tokens go out in one request at most,
    max_in_flight      in so many requests at once; what comes meanwhile is gathered
    max_waiting        more calls than this are not kept waiting
    check_request_id   an answer that carries another X-Request-ID than was sent is another's; False
                       where a proxy on the way puts its own in the place of ours
    """

    deadline: float = 10.0
    connect_timeout: float = 2.0
    read_timeout: float = 5.0
    pool_timeout: float = 2.0
    attempts: int = 4
    backoff: float = 0.1
    max_backoff: float = 2.0
    circuit_failures: int = 5
    circuit_rest: float = 5.0
    max_batch: int = 500
    max_in_flight: int = 4
    max_waiting: int = 10_000
    check_request_id: bool = True

    def __post_init__(self) -> None:
        for name in _SECONDS:
            value = getattr(self, name)
            if not (isfinite(value) and value > 0):
                raise ConfigurationError(f"{name} is a positive number of seconds, not {value}.")
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} is at least 1.")
        if self.max_batch > MAX_BATCH:
            raise ConfigurationError(f"max_batch is at most {MAX_BATCH}: no authority takes more.")


_SECONDS = (
    "deadline",
    "connect_timeout",
    "read_timeout",
    "pool_timeout",
    "backoff",
    "max_backoff",
    "circuit_rest",
)
_COUNTS = ("attempts", "circuit_failures", "max_batch", "max_in_flight", "max_waiting")
