"""Programs as people run them, moved in the middle of their work and judged by their own results."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.migration.journey import Journey, Journeys
from tests.tasks import wait_until

MEBIBYTE = 1 << 20


def _data(directory: Path, size: int) -> Path:
    """So many bytes of real data: programs and libraries of this machine."""
    path = directory / f"data-{size}"
    if not path.exists():
        with path.open("wb") as out:
            for source in sorted(Path("/usr/lib/x86_64-linux-gnu").glob("*.so.*")):
                if out.tell() < size and source.is_file():
                    out.write(source.read_bytes()[: size - out.tell()])
        assert path.stat().st_size == size
    return path


def _worked(journey: Journey, seconds: float) -> None:
    """Wait until it has used so much CPU time."""

    def busy() -> bool:
        fields = Path(f"/proc/{journey.task.outer}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100 >= seconds  # ticks: USER_HZ is 100 on every architecture

    wait_until(f"{journey.name} at work", busy, 30)


def _move_at_work(journeys: Journeys, name: str, argv: Sequence[str], stdin: Path = Path("/dev/null")) -> Journey:
    """Start it, move it in the middle of its work; it must not have been done by then."""
    journey = journeys.run(name, argv, stdin=stdin)
    _worked(journey, 0.5)
    journey.move("--no-converge", "continue", look=False)
    return journey


def test_xz(journeys: Journeys) -> None:
    data = _data(journeys.pair.directory, 32 * MEBIBYTE)
    journey = _move_at_work(journeys, "xz", ["xz", "-T2", "-4", "--block-size=4MiB", "-c", str(data)])
    journey.task.wait_gone(90)
    assert not journey.err
    back = subprocess.run(["xz", "-dc", str(journey.directory / "out")], check=True, capture_output=True).stdout
    assert back == data.read_bytes()


def test_gzip(journeys: Journeys) -> None:
    data = _data(journeys.pair.directory, 32 * MEBIBYTE)
    journey = _move_at_work(journeys, "gzip", ["gzip", "-9", "-c"], stdin=data)
    journey.task.wait_gone(90)
    assert not journey.err
    back = subprocess.run(["gzip", "-dc", str(journey.directory / "out")], check=True, capture_output=True).stdout
    assert back == data.read_bytes()


def test_openssl_speed(journeys: Journeys) -> None:
    # CPU time, which it would reckon with otherwise, begins anew with a new process: nobody can set it.
    arguments = ["-elapsed", "-seconds", "10", "-bytes", "1024", "sha256", "sha512"]
    journey = _move_at_work(journeys, "openssl", ["openssl", "speed", *arguments])
    journey.task.wait_gone(60)
    assert re.search(r"^sha256 +[\d.]+k", journey.out, re.MULTILINE), journey.complaint
    assert re.search(r"^sha512 +[\d.]+k", journey.out, re.MULTILINE), journey.complaint


PYTHON = """
import hashlib, os, threading, time
go, done, counts = os.environ["VICTIM_GO"], threading.Event(), [0] * 4
def count(i):
    digest, last = b"", time.monotonic()
    while not done.is_set():
        for _ in range(100):
            digest = hashlib.sha256(digest + counts[i].to_bytes(8, "little")).digest()
            counts[i] += 1
        time.sleep(0.001)
        now = time.monotonic()
        assert last < now < last + 5, f"the clock went from {last} to {now}"
        last = now
    again = b""
    for n in range(counts[i]):
        again = hashlib.sha256(again + n.to_bytes(8, "little")).digest()
    assert again == digest
    passed.append(i)
passed, started, wall = [], time.monotonic(), time.time()
threads = [threading.Thread(target=count, args=(i,)) for i in range(4)]
[t.start() for t in threads]
cache = {}
while not os.path.exists(go):
    key = os.urandom(16)
    cache[key] = hashlib.md5(key * 100).digest()
    if len(cache) > 1000:
        assert all(hashlib.md5(k * 100).digest() == v for k, v in cache.items())
        cache.clear()
done.set()
[t.join() for t in threads]
assert sorted(passed) == [0, 1, 2, 3]
assert abs((time.monotonic() - started) - (time.time() - wall)) < 0.5
print("pass", flush=True)
"""


def test_python(journeys: Journeys) -> None:
    journey = _move_at_work(journeys, "python3", [sys.executable, "-c", PYTHON])
    journey.tell()
    journey.verdict(60)


SQLITE = """
PRAGMA cache_size = 100;
PRAGMA temp_store = MEMORY;  -- or the index is sorted in a deleted file, which may come to be too large to be moved
CREATE TABLE numbers (n INTEGER PRIMARY KEY, square INTEGER, words TEXT);
BEGIN;
INSERT INTO numbers WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 100000)
    SELECT n, n * n, hex(n) || printf('%050d', n) FROM c;
SELECT 'half';
INSERT INTO numbers WITH RECURSIVE c(n) AS (SELECT 100001 UNION ALL SELECT n + 1 FROM c WHERE n < 1500000)
    SELECT n, n * n, hex(n) || printf('%050d', n) FROM c;
CREATE INDEX by_words ON numbers (words);
COMMIT;
SELECT count(*), sum(n), sum(square), sum(length(words)) FROM numbers;
PRAGMA integrity_check;
"""


def test_sqlite3_in_the_middle_of_a_transaction(journeys: Journeys) -> None:
    """Nobody else may write until it is done, and it is done as a whole."""
    pair = journeys.pair
    database, script = pair.directory / "numbers.db", pair.directory / "numbers.sql"
    script.write_text(SQLITE)
    journey = journeys.run("sqlite3", ["sqlite3", "-batch", str(database)], stdin=script)
    wait_until("half of the transaction", lambda: "half\n" in journey.out, 30)
    journey.move("--no-converge", "continue", look=False)
    other = pair.b.run(["sqlite3", str(database), "INSERT INTO numbers VALUES (-1, 1, '')"], check=False)
    assert "locked" in other.stderr, "it was done already" if not other.returncode else other.stderr
    journey.task.wait_gone(90)
    count = 1500000
    assert not journey.err, journey.complaint
    line, check = journey.out.splitlines()[-2:]
    assert check == "ok"
    found = [int(part) for part in line.split("|")]
    assert found[:3] == [count, count * (count + 1) // 2, count * (count + 1) * (2 * count + 1) // 6]


BASH = """
n=0
declare -A seen
while [[ ! -e $VICTIM_GO ]]; do
    n=$((n + 1)); seen[$((n % 100))]=$n
    echo "$n" >> "$VICTIM_DIR/log"
done
for i in {0..99}; do [[ $((seen[$i] % 100)) == "$i" ]] || echo "seen[$i] is ${seen[$i]}" >&2; done
true | cat | read -r nothing
echo "$(echo "counted $n")"
echo pass
"""


def test_bash_in_a_loop(journeys: Journeys) -> None:
    journey = _move_at_work(journeys, "bash", ["bash", "-c", BASH])
    journey.tell()
    counted = re.search(r"counted (\d+)", journey.verdict())
    assert counted
    lines = (journey.directory / "log").read_text().splitlines()
    assert lines == [str(n) for n in range(1, int(counted[1]) + 1)]


PERL = r"""
my (%count, $n, $text); local $| = 1; $SIG{ALRM} = sub { $count{alarms}++; alarm 1 }; alarm 1;
until (-e $ENV{VICTIM_GO}) {
    for (1 .. 1000) { $n++; $count{$n % 97}++; $text = substr($text . chr(65 + $n % 26), -100) }
}
my $sum = 0; $sum += $count{$_} for 0 .. 96;
my $wanted = join "", map { chr(65 + $_ % 26) } $n - 99 .. $n;
die "$sum, not $n" unless $sum == $n; die "$text, not $wanted" unless $text eq $wanted;
print "pass\n";
"""


def test_perl(journeys: Journeys) -> None:
    journey = _move_at_work(journeys, "perl", ["perl", "-e", PERL])
    journey.tell()
    journey.verdict()


GAWK = """
BEGIN {
    go = ENVIRON["VICTIM_GO"]
    while ((getline line < go) < 0) {
        for (i = 0; i < 10000; i++) { n++; sum += n; count[n % 101]++; if (match("x" n "y", /[0-9]+/) != 2) bad++ }
    }
    for (i in count) all += count[i]
    if (bad || all != n || sum != n * (n + 1) / 2) { print n, sum, all, bad > "/dev/stderr"; exit 1 }
    print "pass"
}
"""


def test_gawk(journeys: Journeys) -> None:
    journey = _move_at_work(journeys, "gawk", ["gawk", GAWK])
    journey.tell()
    journey.verdict()
