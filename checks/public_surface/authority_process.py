"""The process that `observed` starts: create a small authority and describe its public interface.

It works in the current directory. It writes its findings to stdout as one line of JSON, and the
authority's JSON log to stderr. It calls the application in memory and never listens on a port.
"""

import asyncio
import contextlib
import json
import logging
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx2
from prometheus_client.parser import text_string_to_metric_families
from starlette.routing import Mount, Route

from checks.public_surface import places
from checks.public_surface.authority_commands import TOKEN, run_commands_after, run_commands_before
from checks.public_surface.text import find_shape

_FIXED_LABELS = {"certificate", "fault", "kind", "outcome", "reason", "verdict", "writer"}
"""Labels whose set of values is fixed in the program and does not depend on the requests."""
_FIXED_LABELS_OF_HISTOGRAMS = _FIXED_LABELS | {"route"}
"""For histograms the routes are fixed too. The request counter has only the requested routes."""
_VARYING_FIELDS = frozenset(
    {
        *("content-disposition", "content-length", "etag", "expires", "last-modified"),
        *("ratelimit", "ratelimit-policy", "x-request-id"),
    }
)
_VARYING_PART = re.compile(r"(?<=^sma-form=)[\w-]+|(?<='sha256-)[\w+/=]+")
_SAMPLES = (
    "/",
    "/api/v1/nothing",
    "/dashboard",
    "/dashboard/figures",
    "/dashboard/sign-in",
    "/dashboard/static/dashboard.css",
    "/dashboard/validations.csv",
    "/docs",
    "/health/live",
    "/metrics",
    "/openapi.json",
    "/pki/intermediate.crl",
    "/pki/root.crt",
    "/stats",
)
_SETTINGS = {
    "data_dir": "data",
    "kek_file": "key",
    "access": "keys",
    "log_format": "json",
    "log_level": "debug",
    "slow_query_ms": 0.001,  # so that the log has records that a request caused
    "rate_provision": "100000/minute",
    "rate_validate": "100001/minute",
    "rate_failures": "100002/minute",
    "rate_admin": "100003/minute",
    "rate_ocsp": "100006/minute",
    "rate_guesses": "100004/minute",
}


def main() -> None:
    """Create an authority, query it, run the commands and print the findings."""
    outputs, keys = run_commands_before()
    found = asyncio.run(_ask(keys))
    outputs |= run_commands_after() | found.pop("exports")
    print(json.dumps(found | {"outputs": outputs}), flush=True)


async def _ask(keys: dict[str, str]) -> dict[str, Any]:
    settings = places.load_settings(_SETTINGS, {})
    places.configure_logging(settings)
    try:
        raise ValueError("an error for the log")
    except ValueError:
        logging.getLogger("birthmark_sma").exception("an exception for the log")
    application = places.make_application(settings)
    async with _started(application):
        transport = httpx2.ASGITransport(application, raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            routes = [
                await _try_route(client, keys, method, path)
                for method, path in _list_routes(application)
            ]
            admin = {"Authorization": f"Bearer {keys['admin']}"}
            openapi = (await client.get("/openapi.json", headers=admin)).json()
            await _validate(client, keys["validate"])
            metrics = (await client.get("/metrics", headers=admin)).text
            exports = await _read_exports(client, admin)
            headers = {path: await _read_headers(client, admin, path) for path in _SAMPLES}
    return {
        "openapi": openapi,
        "metrics": _describe_metrics(metrics),
        "routes": dict(routes),
        "exports": exports,
        "headers": headers,
    }


@contextlib.asynccontextmanager
async def _started(application: Any) -> AsyncIterator[None]:
    """Run the application's ASGI lifespan, as a server does. Raises RuntimeError if it fails."""
    received: asyncio.Queue[dict[str, str]] = asyncio.Queue()
    sent: asyncio.Queue[Any] = asyncio.Queue()
    scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
    running = asyncio.create_task(application(scope, received.get, sent.put))
    for message in ("startup", "shutdown"):
        await received.put({"type": f"lifespan.{message}"})
        answer = await sent.get()
        if answer["type"] != f"lifespan.{message}.complete":
            raise RuntimeError(answer)
        if message == "startup":
            yield
    await running


def _list_routes(application: Any) -> list[tuple[str, str]]:
    """Return method and path of each route. HEAD is left out, because it behaves like GET.

    Raises RuntimeError for an unknown kind of route, so that no route is missed.
    """
    # The loop appends to the list that it iterates over: routers contain routes.
    found, waiting = set(), list(application.routes)
    for route in waiting:
        included = getattr(route, "original_router", None)
        if included is not None:
            waiting += included.routes
        elif isinstance(route, Mount):
            found.add(("GET", route.path))
        elif isinstance(route, Route):
            found |= {(method, route.path) for method in (route.methods or set()) - {"HEAD"}}
        else:
            raise RuntimeError(f"This kind of route is unknown to the collector: {route}")
    return sorted(found, key=lambda each: (each[1], each[0]))


async def _try_route(
    client: httpx2.AsyncClient, keys: dict[str, str], method: str, path: str
) -> tuple[str, Any]:
    """Return the credentials that a route accepts, and the rate limit that counts its requests."""
    opened, limits = [], set()
    for name, key in {"nobody": None, **keys}.items():
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        response = await client.request(method, path, headers=headers)
        problem = {}
        if response.headers.get("content-type") == "application/problem+json":
            problem = response.json()
        if not problem.get("type", "").endswith(("unauthenticated", "insufficient-scope")):
            opened.append(name)
            limits.add(response.headers.get("ratelimit-policy"))
    policies = sorted(
        {policy.split(";")[0].strip(' "') for each in limits if each for policy in each.split(",")}
    )
    return f"{method} {path}", {"open_to": opened, "rate_limits": policies}


async def _validate(client: httpx2.AsyncClient, key: str) -> None:
    """Validate tokens, so that the metrics of batches have values."""
    headers = {"Authorization": f"Bearer {key}"}
    tokens = {"tokens": [TOKEN] * 3}
    one = "/api/v1/validate/nuc"
    # Concurrently, so that some share a commit: a log record then names several requests.
    await asyncio.gather(*(client.post(one, headers=headers, json=TOKEN) for _ in range(50)))
    await client.post("/api/v1/validate/nuc/batch", headers=headers, json=tokens)


async def _read_exports(client: httpx2.AsyncClient, headers: dict[str, str]) -> dict[str, Any]:
    stats = (await client.get("/stats", headers=headers)).json()
    health = (await client.get("/health", headers=headers)).json()
    rows = (await client.get("/dashboard/validations.csv", headers=headers)).text.splitlines()
    lines = (await client.get("/dashboard/validations.jsonl", headers=headers)).text.splitlines()
    return {
        "GET /stats": find_shape(stats),
        "GET /health": find_shape(health),
        "GET /dashboard/validations.csv": rows[0].lstrip("\ufeff").split(","),
        "GET /dashboard/validations.jsonl": find_shape(json.loads(lines[0])),
    }


async def _read_headers(
    client: httpx2.AsyncClient, credential: dict[str, str], path: str
) -> dict[str, str]:
    """Return the status and header fields of a response. Values that vary are replaced."""
    response = await client.get(path, headers=credential)
    fields = {
        name: "(varies)" if name in _VARYING_FIELDS else _VARYING_PART.sub("(varies)", value)
        for name, value in response.headers.items()
    }
    return {"(status)": str(response.status_code), **places.list_server_headers(), **fields}


def _describe_metrics(text: str) -> dict[str, Any]:
    described = {}
    for family in text_string_to_metric_families(text):
        fixed = _FIXED_LABELS_OF_HISTOGRAMS if family.type == "histogram" else _FIXED_LABELS
        bounds = {each.labels["le"]: None for each in family.samples if "le" in each.labels}
        described[family.name] = {
            "kind": family.type,
            "help": family.documentation,
            "samples": sorted({sample.name for sample in family.samples}),
            "labels": sorted({name for sample in family.samples for name in sample.labels}),
            "buckets": list(bounds),
            "values": {
                label: sorted({each.labels[label] for each in family.samples})
                for label in sorted(fixed & family.samples[0].labels.keys())
            },
        }
    return dict(sorted(described.items()))


if __name__ == "__main__":
    main()
