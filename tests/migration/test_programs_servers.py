"""Servers and language runtimes, with clients and workers in the tree, moved at work and judged by their results."""

from __future__ import annotations

import re
import sys

from tests.migration.journey import Journeys
from tests.tasks import children, wait_until

AT_WORK = ("--no-converge", "continue", "--max-rounds", "4")  # they write as long as they live

NGINX = """
daemon off; master_process on; worker_processes 2; user root;
error_log {home}/error.log; pid {home}/nginx.pid;
events {{ worker_connections 64; }}
http {{
    access_log {home}/access.log; root {home}; sendfile on; keepalive_requests 7;
    client_body_temp_path {home}/body; proxy_temp_path {home}/proxy; fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi; scgi_temp_path {home}/scgi;
    server {{
        listen unix:{home}/front;
        location / {{ }}
        location /said/ {{ return 200 "$uri by $pid\\n"; }}
        location /through/ {{ proxy_pass http://unix:{home}/front:/; }}
    }}
}}
"""

# Starts nginx, and four threads that ask it for something else each time, over connections that last and new ones.
CLIENT = """
import hashlib, http.client, os, random, socket, subprocess, threading, time
home, go = os.environ["VICTIM_DIR"], os.environ["VICTIM_GO"]
contents = {}
for number in range(8):
    contents[f"/file{number}"] = random.Random(number).randbytes(1 << (10 + number))
    with open(f"{home}/file{number}", "wb") as file:
        file.write(contents[f"/file{number}"])
class Connection(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(20)
        self.sock.connect(f"{home}/front")
server = subprocess.Popen(["nginx", "-p", home, "-c", f"{home}/nginx.conf"])
while not os.path.exists(f"{home}/nginx.pid"):
    time.sleep(0.01)
counts, workers, failures = [0] * 4, set(), []
def ask(lane):
    draw, connection = random.Random(lane), Connection("localhost")
    try:
        while not os.path.exists(go) or len(workers) < 2:
            what = draw.choice(["/file", "/through/file", "/said/"])
            path = f"{what}{draw.randrange(8) if what != '/said/' else f'{lane}-{counts[lane]}'}"
            connection.request("GET", path)
            answer = connection.getresponse()
            body = answer.read()
            if answer.status != 200:
                raise RuntimeError(f"{path}: {answer.status} {body[:100]}")
            if what == "/said/":
                said, _, by = body.decode().partition(" by ")
                assert said == path, (said, path)
                workers.add(int(by))
            else:
                wanted = contents[path.removeprefix("/through")]
                assert body == wanted, f"{path}: {len(body)} of {len(wanted)} bytes"
            counts[lane] += 1
            if draw.random() < 0.3:
                connection.close()
    except BaseException as error:
        failures.append(f"lane {lane} after {counts[lane]}: {error!r}")
threads = [threading.Thread(target=ask, args=(lane,)) for lane in range(4)]
[thread.start() for thread in threads]
while sum(counts) < 200 and not failures:
    time.sleep(0.01)
print("ready", flush=True)
[thread.join() for thread in threads]
assert not failures, failures
with open(f"{home}/access.log") as file:
    codes = [line.split('"')[2].split()[0] for line in file]
assert set(codes) == {"200"}, set(codes)
server.send_signal(subprocess.signal.SIGQUIT) # it ends when it has answered all
assert server.wait(20) == 0
with open(f"{home}/error.log") as file:
    said = file.read()
assert not said, said
print(f"answered {sum(counts)} by {len(workers)}", flush=True)
print("pass", flush=True)
"""


def test_nginx(journeys: Journeys) -> None:
    """Two workers on a unix socket and four clients: no request fails, every body is right, and the logs say so."""
    home = journeys.pair.directory / "nginx"
    home.mkdir()
    environment = {"VICTIM_DIR": str(home)}
    (home / "nginx.conf").write_text(NGINX.format(home=home))
    journey = journeys.run("nginx", [sys.executable, "-c", CLIENT], env=environment)
    wait_until("requests", lambda: "ready\n" in journey.out or not journey.task.alive, 30)
    journey.must_live()
    assert len(children(journey.task.outer)) == 1
    journey.move(*AT_WORK, look=False)
    journey.tell()
    answered = re.search(r"answered (\d+) by 2", journey.verdict(60))
    assert answered and int(answered[1]) > 200
