"""PostgreSQL with its processes, shared memory, semaphores and unix socket, and clients that go on with their
transactions: no error, and every row is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.hosts import USERS
from tests.migration.journey import Journeys
from tests.tasks import children, wait_until

AT_WORK = ("--no-converge", "continue", "--max-rounds", "4")
CLIENTS, EACH = 3, 2500
SERVER = max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path("/usr/lib/postgresql"))
USER = str(USERS["guest"])  # PostgreSQL does not run as root

# One server and its clients under a shell, which judges by what pgbench says and by what is in the table.
SCRIPT = f"""
bin={SERVER} data=$VICTIM_DIR/data
psql() {{ $bin/psql -XAtq -h $VICTIM_DIR -d postgres "$@"; }}
$bin/postgres -D $data -k $VICTIM_DIR -c listen_addresses= > $VICTIM_DIR/server.log 2>&1 &
server=$!
until psql -c 'select 1' > $VICTIM_DIR/up 2>&1; do sleep 0.1; done
psql -c 'create table rows (client int, number int, primary key (client, number))' -c 'create sequence numbers'
$bin/pgbench -n -h $VICTIM_DIR -d postgres -f $VICTIM_DIR/load -c {CLIENTS} -t {EACH} -R 250 > $VICTIM_DIR/bench 2>&1 &
bench=$!
until [ "$(psql -c 'select count(*) > 50 from rows')" = t ]; do sleep 0.1; done
echo ready
wait $bench; echo "pgbench ended with $?"
until [ -e $VICTIM_GO ]; do sleep 0.1; done
psql -c 'select count(*), count(distinct number), max(number) from rows'
kill -INT $server; wait $server; echo "the server ended with $?"
"""
LOAD = r"""
begin;
insert into rows values (:client_id, nextval('numbers'));
select count(*) from rows where client = :client_id;
commit;
"""


@pytest.mark.timeout(200)
@pytest.mark.parametrize("memory", ["default", "sysv"])
def test_server_and_its_clients(journeys: Journeys, memory: str) -> None:
    a = journeys.pair.a
    as_user = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
    journey_dir = a.directory / f"cluster-{memory}"
    journey_dir.mkdir()
    journey_dir.chmod(0o777)
    initdb = [f"{SERVER}/initdb", "-D", str(journey_dir / "data"), "-A", "trust", "-U", "guest", "--no-sync"]
    a.run([*as_user, *initdb])
    if memory == "sysv":
        with (journey_dir / "data/postgresql.conf").open("a") as file:
            file.write("shared_memory_type = sysv\ndynamic_shared_memory_type = sysv\n")
    (journey_dir / "load").write_text(LOAD)
    script = SCRIPT.replace("$VICTIM_DIR", str(journey_dir))
    journey = journeys.run("postgresql", [*as_user, "bash", "-c", script])
    log = journey_dir / "server.log"
    try:
        wait_until("clients at work", lambda: "ready\n" in journey.out, 60)
    except TimeoutError:
        raise AssertionError(f"{journey.complaint}\n{log.read_text()}") from None
    assert len(children(journey.task.outer)) >= 2
    journey.move(*AT_WORK, look=False)
    assert "ended" not in journey.out  # it was in the middle of it
    journey.tell()
    journey.task.wait_gone(100)
    said, bench = journey.out.splitlines(), (journey_dir / "bench").read_text()
    told = f"{journey.out}{journey.err}{bench}{log.read_text()}"
    total = CLIENTS * EACH
    assert said == ["ready", "pgbench ended with 0", f"{total}|{total}|{total}", "the server ended with 0"], told
    assert re.search(rf"actually processed: {total}/{total}", bench), told
    assert not re.search(r"ERROR|FATAL|PANIC|crash|terminated by signal", log.read_text()), told
    assert not journey.err, told
