"""A cluster on loopback: etcd, two nodes of PostgreSQL under Patroni, and HAProxy on request.

One etcd stands for three: what is tested is the loss of a node of PostgreSQL, or of its way to
etcd. All programs read the files in deploy/high-availability.
"""

import json
import secrets
import time
from typing import Any, Self

import httpx2
import psycopg

from tests.high_availability.home import Home
from tests.high_availability.node import FILES, Node
from tests.support.deployment.platforms import read_environment_file
from tests.support.http.ports import free_port
from tests.support.programs.running import wait_until

DATABASE = "sma"
_START_SECONDS = 120.0
_COMMAND_SECONDS = 60.0


class Cluster:
    """The running cluster. Use it as a context manager."""

    def __init__(self) -> None:
        self.home = Home()
        self._client_port, peer_port = free_port(), free_port()
        self._password = secrets.token_urlsafe(16)
        passwords = {
            f"PATRONI_{role}_{part}": value
            for role, user in (
                ("SUPERUSER", "postgres"),
                ("REPLICATION", "replicator"),
                ("RESTAPI", "patroni"),
            )
            for part, value in (("USERNAME", user), ("PASSWORD", secrets.token_urlsafe(16)))
        }
        self.nodes: list[Node] = []
        try:
            self._start_etcd(peer_port)
            self.nodes = [
                Node(self.home, name, self._etcd_url, passwords) for name in ("db1", "db2")
            ]
            for node in self.nodes:
                node.start()
            self.wait_until_whole(_START_SECONDS)
            self.leader().execute(
                f"CREATE ROLE sma LOGIN PASSWORD '{self._password}'",
                f"CREATE DATABASE {DATABASE} OWNER sma",
            )
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """The DATABASE_URL of a server: it names both nodes."""
        return self._url_of(",".join(node.address for node in self.nodes))

    def leader(self) -> Node:
        """Return the primary. Fails if there is none."""
        found = self.find_leader()
        assert found is not None, "no node is the primary"
        return found

    def find_leader(self) -> Node | None:
        """Return the node that holds the lease, as Patroni says, or None. Never a frozen one."""
        for node in self.nodes:
            answer = node.ask("/primary")
            if answer is not None and answer.status_code == httpx2.codes.OK:
                return node
        return None

    def standby(self) -> Node:
        """Return the other node."""
        leader = self.leader()
        [standby] = [node for node in self.nodes if node is not leader]
        return standby

    def patronictl(self, *arguments: str) -> str:
        """Run patronictl as an operator would on a node, and return what it printed."""
        command = "from patroni.ctl import ctl; ctl()"
        return self.home.run(
            [self.home.python, "-c", command, "-c", str(FILES / "patroni.yml"), *arguments],
            self.nodes[0].environ,
            _COMMAND_SECONDS,
        )

    def switch_over(self) -> None:
        """Make the standby the primary, with the command of the documentation."""
        before = self.leader()
        self.patronictl("switchover", "--leader", before.name, "--force")

    def wait_until_whole(self, seconds: float) -> None:
        """Wait until there is a primary and a synchronous standby that streams from it."""
        deadline = time.monotonic() + seconds
        while not self._is_whole():
            if time.monotonic() > deadline:
                raise AssertionError(
                    f"the cluster is not whole: {self._members()}\n"
                    + "\n".join(self.home.log(node.name)[-3000:] for node in self.nodes)
                )
            time.sleep(0.2)

    def wait_until_replayed(self, seconds: float = 60.0) -> None:
        """Wait until the standby has replayed what the primary has written so far."""
        with psycopg.connect(self.leader().url(), autocommit=True) as primary:
            [target] = primary.execute("SELECT pg_current_wal_lsn()").fetchone() or [None]
        replayed = "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn"
        with psycopg.connect(self.standby().url(), autocommit=True) as standby:
            wait_until(lambda: standby.execute(replayed, [target]).fetchone() == (True,), seconds)

    def start_haproxy(self) -> str:
        """Start HAProxy, and return the DATABASE_URL that goes through it."""
        address = f"127.0.0.1:{free_port()}"
        environ = {"BIND": address}
        for node in self.nodes:
            environ[node.name.upper()] = node.address
            environ[f"{node.name.upper()}_PATRONI"] = node.api_address
        command = [self.home.program("haproxy"), "-db", "-f", str(FILES / "haproxy.cfg")]
        self.home.start("haproxy", command, environ)
        url = self._url_of(address)
        wait_until(lambda: _answers(url), _COMMAND_SECONDS)
        return url

    def close(self) -> None:
        """Stop all programs and remove their files."""
        for node in self.nodes:
            node.close()
        self.home.close()

    @property
    def _etcd_url(self) -> str:
        return f"http://127.0.0.1:{self._client_port}"

    def _url_of(self, hosts: str) -> str:
        return f"postgresql://sma:{self._password}@{hosts}/{DATABASE}"

    def _start_etcd(self, peer_port: int) -> None:
        peer = f"http://127.0.0.1:{peer_port}"
        environ = {
            "ETCD_NAME": "etcd1",
            "ETCD_DATA_DIR": str(self.home.path / "etcd" / "data"),
            "ETCD_LISTEN_CLIENT_URLS": self._etcd_url,
            "ETCD_ADVERTISE_CLIENT_URLS": self._etcd_url,
            "ETCD_LISTEN_PEER_URLS": peer,
            "ETCD_INITIAL_ADVERTISE_PEER_URLS": peer,
            "ETCD_INITIAL_CLUSTER": f"etcd1={peer}",
            "ETCD_INITIAL_CLUSTER_STATE": "new",
            "ETCD_INITIAL_CLUSTER_TOKEN": "sma",
        }
        assert environ.keys() == read_environment_file(str(FILES / "etcd1.env")).keys()
        self.home.start("etcd", [self.home.program("etcd")], environ)

    def _members(self) -> dict[str, Any]:
        for node in self.nodes:
            answer = node.ask("/cluster")
            if answer is not None and answer.status_code == httpx2.codes.OK:
                return {each["name"]: each for each in json.loads(answer.text)["members"]}
        return {}

    def _is_whole(self) -> bool:
        states = {each["role"]: each["state"] for each in self._members().values()}
        return states == {"leader": "running", "sync_standby": "streaming"}


def _answers(url: str) -> bool:
    try:
        psycopg.connect(url, connect_timeout=5).close()
    except psycopg.OperationalError:
        return False
    return True
