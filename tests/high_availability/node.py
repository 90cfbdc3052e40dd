"""A node of the cluster: PostgreSQL under Patroni, from the files in deploy/high-availability.

Others reach its PostgreSQL and its Patroni, and it reaches etcd, through proxies of this process.
So its network can be cut. It can also be killed, frozen and started again.
"""

import signal
from collections.abc import Mapping

import httpx2
import psycopg

from tests.high_availability.home import Home
from tests.support.databases.frozen_proxy import FrozenProxy
from tests.support.deployment.platforms import ROOT, read_environment_file
from tests.support.http.ports import free_port

FILES = ROOT / "deploy" / "high-availability"
_ANSWER_SECONDS = 3.0


class Node:
    """One of the two nodes. `secrets` are the variables that are the same on both."""

    def __init__(self, home: Home, name: str, etcd_url: str, secrets: Mapping[str, str]) -> None:
        self.name = name
        self._home = home
        self._secrets = secrets
        self._port, self._api_port = free_port(), free_port()
        self._etcd = FrozenProxy(etcd_url)
        self._api = FrozenProxy(f"http://127.0.0.1:{self._api_port}")
        self._sql = FrozenProxy(f"postgresql://127.0.0.1:{self._port}")
        self._links = (self._etcd, self._api, self._sql)

    @property
    def address(self) -> str:
        """Host and port of its PostgreSQL, as all others reach it."""
        return f"127.0.0.1:{self._sql.port}"

    @property
    def api_address(self) -> str:
        """Host and port of its Patroni, as all others reach it."""
        return f"127.0.0.1:{self._api.port}"

    @property
    def environ(self) -> dict[str, str]:
        """The variables of db1.env, with the values of this node."""
        own = {
            "PATRONI_NAME": self.name,
            "PATRONI_ETCD3_HOSTS": f"127.0.0.1:{self._etcd.port}",
            "PATRONI_POSTGRESQL_LISTEN": f"127.0.0.1:{self._port}",
            "PATRONI_POSTGRESQL_CONNECT_ADDRESS": self.address,
            "PATRONI_POSTGRESQL_DATA_DIR": str(self._home.path / self.name / "data"),
            "PATRONI_POSTGRESQL_BIN_DIR": str(self._home.postgres),
            "PATRONI_RESTAPI_LISTEN": f"127.0.0.1:{self._api_port}",
            "PATRONI_RESTAPI_CONNECT_ADDRESS": self.api_address,
            **self._secrets,
        }
        assert own.keys() == read_environment_file(str(FILES / "db1.env")).keys()
        # Or else Patroni would ask etcd for its address, and go around the proxy.
        return own | {"PATRONI_ETCD3_USE_PROXIES": "true"}

    def start(self) -> None:
        """Start Patroni, which starts PostgreSQL."""
        command = [self._home.python, "-m", "patroni", str(FILES / "patroni.yml")]
        self._home.start(self.name, command, self.environ)

    def stop(self) -> None:
        """Stop Patroni in order, and PostgreSQL with it."""
        self._home.send(self.name, signal.SIGCONT)
        self._home.stop(self.name)

    def kill(self) -> None:
        """Kill every process of the node with SIGKILL, like a machine that loses its power."""
        self._home.kill(self.name)

    def freeze(self) -> None:
        """Stop every process of the node: the kernel still acknowledges packets."""
        self._home.send(self.name, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let them go on, as if no time had passed."""
        self._home.send(self.name, signal.SIGCONT)

    def cut(self) -> None:
        """Cut the network: nobody reaches the node, and it does not reach etcd."""
        for link in self._links:
            link.freeze()

    def mend(self) -> None:
        """Mend the network. What was on its way arrives now, late."""
        for link in self._links:
            link.thaw()

    def close(self) -> None:
        """Stop the node and its proxies."""
        self.mend()
        self.stop()
        for link in self._links:
            link.close()

    def ask(self, path: str) -> httpx2.Response | None:
        """Return the answer of its Patroni, past the proxies, or None if there is none."""
        url = f"http://127.0.0.1:{self._api_port}{path}"
        try:
            return httpx2.get(url, timeout=_ANSWER_SECONDS, trust_env=False)
        except httpx2.HTTPError:
            return None

    def url(self, database: str = "postgres") -> str:
        """Return the superuser's URL of a database of this node, past the proxies."""
        user = self._secrets["PATRONI_SUPERUSER_USERNAME"]
        password = self._secrets["PATRONI_SUPERUSER_PASSWORD"]
        return f"postgresql://{user}:{password}@127.0.0.1:{self._port}/{database}"

    def execute(self, *statements: str, database: str = "postgres") -> None:
        """Run statements as the superuser, each by itself."""
        with psycopg.connect(self.url(database), autocommit=True, connect_timeout=10) as connection:
            for statement in statements:
                connection.execute(statement.encode())
