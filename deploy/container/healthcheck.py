"""Exit with 0 if the server of this container is ready, else with 1. For HEALTHCHECK.

The image has no curl, so this program asks /health/ready on the port that PORT names.
"""

import http.client
import os
import sys


def main() -> int:
    """Return the exit code."""
    connection = http.client.HTTPConnection(
        "127.0.0.1", int(os.environ.get("PORT") or 8000), timeout=5
    )
    try:
        connection.request("GET", "/health/ready")
        return 0 if connection.getresponse().status == http.HTTPStatus.OK else 1
    except OSError:
        return 1
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main())
