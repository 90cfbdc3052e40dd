"""Define the options of a client: deadlines, retries, circuit breaker and batch sizes."""

from dataclasses import dataclass, fields
from math import isfinite

from birthmark_sma.errors import ConfigurationError

MAX_BATCH = 1_000
"""The largest number of camera tokens that the authority accepts in one request."""


@dataclass(frozen=True, slots=True)
class Options:
    """The options of a client, in seconds or counts. Raises ConfigurationError for invalid ones.

    deadline           a call has its outcome after this time, whatever happens
    connect_timeout    time to open a connection
    read_timeout       time to wait for the next part of a response
    pool_timeout       time to wait for a free connection of the pool
    attempts           number of times a request is sent at most
    backoff, max_backoff   the n-th wait is random in 0..min(max_backoff, backoff * 2**n)
    circuit_failures   number of failures in a row that open the circuit
    circuit_rest       time that the circuit stays open
    max_batch          number of camera tokens in one request at most
    max_in_flight      number of requests at once at most; later calls wait for the next batch
    max_waiting        number of waiting calls at most; more calls end as OVERLOADED
    check_request_id   refuse a response whose X-Request-ID differs from the one that was sent: it
                       belongs to another request. Set it to False if a proxy replaces the id
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
        for each in fields(self):
            value = getattr(self, each.name)
            if each.type is float and not (isfinite(value) and value > 0):
                raise ConfigurationError(
                    f"{each.name} must be a positive number of seconds, not {value}."
                )
            if each.type is int and value < 1:
                raise ConfigurationError(f"{each.name} must be at least 1.")
        if self.max_batch > MAX_BATCH:
            raise ConfigurationError(
                f"max_batch must be at most {MAX_BATCH}, because no authority accepts more."
            )
