"""Kill a server with SIGKILL in the middle of requests that are sent all at once."""

import random
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import httpx2

from tests.support.programs.running import Running

_SECONDS = 60
Name = TypeVar("Name")
Send = Callable[[httpx2.Client], httpx2.Response]


def send_until_killed(
    running: Running, requests: Mapping[Name, Send], *, within: float
) -> dict[Name, dict[str, Any]]:
    """Send all requests at once, and kill the server at a random time within `within` seconds.

    Return the bodies of the responses with status 200, by the names of the requests.
    """
    answered: dict[Name, dict[str, Any]] = {}
    start = threading.Barrier(len(requests) + 1)

    def send(name: Name) -> None:
        with running.client() as client:
            start.wait(_SECONDS)
            try:
                answer = requests[name](client)
            except httpx2.HTTPError:
                return
        if answer.status_code == 200:
            answered[name] = answer.json()

    with ThreadPoolExecutor(len(requests)) as threads:
        sent = [threads.submit(send, name) for name in requests]
        start.wait(_SECONDS)
        time.sleep(random.uniform(0.01, within))
        running.server.kill()
        for each in sent:
            each.result(_SECONDS)
    running.server.close()
    return answered
