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

# Three workers that sort, hash and multiply what they are sent, by messages and by memory that they share.
NODE = """
const { Worker, isMainThread, parentPort, workerData } = require('worker_threads');
const { createHash } = require('crypto');
const fs = require('fs');
const WORKERS = 3;
function draws(seed) {
    let x = seed >>> 0 || 1;
    return () => { x ^= x << 13; x >>>= 0; x ^= x >>> 17; x ^= x << 5; x >>>= 0; return x; };
}
function task(seed) {
    const draw = draws(seed), numbers = Array.from({ length: 2000 }, draw).sort((a, b) => a - b);
    return { seed, digest: createHash('sha256').update(String(numbers)).digest('hex') };
}
if (!isMainThread) {
    const counters = new Int32Array(workerData.counters);
    parentPort.on('message', ({ seed, bytes }) => {
        const answer = task(seed);
        answer.bytes = bytes.map((byte, i) => byte ^ i);
        Atomics.add(counters, workerData.number, 1);
        Atomics.notify(counters, workerData.number);
        parentPort.postMessage(answer, [answer.bytes.buffer]);
    });
} else {
    const counters = new SharedArrayBuffer(4 * WORKERS), seen = new Int32Array(WORKERS), known = new Map();
    const began = process.hrtime.bigint(), go = process.env.VICTIM_GO;
    let seed = 0, done = 0, reads = 0, late = 0, open = WORKERS;
    const beat = setInterval(() => { // by the thread pool, meanwhile
        fs.readFile(process.argv[2], (error, data) => { if (error) throw error; reads += data.length > 0; });
        late++;
    }, 10);
    for (let number = 0; number < WORKERS; number++) {
        const worker = new Worker(process.argv[2], { workerData: { counters, number } });
        const send = () => { seed++; worker.postMessage({ seed: seed % 500, bytes: new Uint8Array(500).fill(seed) }); };
        let sent = 0, expected = [];
        const next = () => { send(); expected.push(seed); sent++; };
        worker.on('message', (answer) => {
            const asked = expected.shift();
            if (answer.seed !== asked % 500) throw new Error(`answer to ${answer.seed}, not ${asked % 500}`);
            if (!answer.bytes.every((byte, i) => byte === ((asked ^ i) & 255))) throw new Error(`bytes of ${asked}`);
            seen[number]++;
            const before = known.get(answer.seed);
            if (before && before !== answer.digest) throw new Error(`${answer.seed} is ${answer.digest} by now`);
            known.set(answer.seed, answer.digest);
            if (++done === 300) console.log('ready');
            if (!fs.existsSync(go)) return next();
            if (expected.length) return;
            worker.terminate().then(() => {
                if (--open) return;
                clearInterval(beat);
                const final = new Int32Array(counters);
                seen.forEach((count, i) => { if (count !== final[i]) throw new Error(`${i}: ${count}, ${final[i]}`); });
                for (const [key, digest] of known) if (task(key).digest !== digest) throw new Error(`task ${key}`);
                if (!reads || process.hrtime.bigint() <= began) throw new Error(`${reads} reads`);
                console.log(`did ${done}`);
                console.log('pass');
            });
        });
        worker.on('error', (error) => { throw error; });
        for (let i = 0; i < 4; i++) next();
    }
}
"""


def test_node(journeys: Journeys) -> None:
    """Worker threads that answer messages and count in shared memory; every answer is checked, and none is missing."""
    program = journeys.pair.directory / "workers.js"
    program.write_text(NODE)
    journey = journeys.run("node", ["node", str(program), str(program)])
    wait_until("answers", lambda: "ready\n" in journey.out or not journey.task.alive, 60)
    journey.must_live()
    journey.move(*AT_WORK, look=False)
    journey.tell()
    did = re.search(r"did (\d+)", journey.verdict(60))
    assert did and int(did[1]) > 300


# Four threads that allocate, sort, and compile what they run: G1 moves objects and the JIT replaces code all the time.
JAVA = """
import java.nio.file.*;
import java.util.*;
import java.util.concurrent.*;
import java.util.concurrent.atomic.*;

public class Load {
    interface Step { long of(long x); }

    static long digest(long seed) {
        Random random = new Random(seed);
        TreeMap<String, Long> map = new TreeMap<>();
        for (int i = 0; i < 2000; i++)
            map.merge(Integer.toString(random.nextInt(700), 36), random.nextLong(), Long::sum);
        long sum = 7;
        for (Map.Entry<String, Long> entry : map.entrySet())
            sum = sum * 31 + entry.getKey().hashCode() ^ entry.getValue();
        Step[] steps = { x -> x * 3 + 1, x -> x ^ x >>> 7, x -> Long.rotateLeft(x, 13), x -> x - seed };
        for (int i = 0; i < 4000; i++)
            sum = steps[(int) (sum >>> 60) & 3].of(sum);
        double root = 0;
        for (int i = 1; i < 1000; i++)
            root += Math.sqrt(i * (double) (seed + 1));
        return sum ^ Double.doubleToLongBits(root);
    }

    public static void main(String[] arguments) throws Exception {
        Path go = Path.of(System.getenv("VICTIM_GO"));
        long[] expected = new long[64];
        for (int i = 0; i < 64; i++)
            expected[i] = digest(i);
        AtomicLong done = new AtomicLong(), wrong = new AtomicLong();
        AtomicBoolean over = new AtomicBoolean();
        ConcurrentHashMap<Long, byte[]> kept = new ConcurrentHashMap<>();
        ExecutorService pool = Executors.newFixedThreadPool(4);
        List<Future<Long>> futures = new ArrayList<>();
        for (int lane = 0; lane < 4; lane++) {
            long first = lane;
            futures.add(pool.submit(() -> {
                long count = 0;
                for (long i = first; !over.get(); i = i * 5 + 1 & 63, count++) {
                    if (digest(i) != expected[(int) i])
                        wrong.incrementAndGet();
                    byte[] bytes = new byte[3000];
                    Arrays.fill(bytes, (byte) i);
                    byte[] before = kept.put(first * 1000 + count % 500, bytes);
                    if (before != null && before[0] != before[2999])
                        wrong.incrementAndGet();
                    done.incrementAndGet();
                }
                return count;
            }));
        }
        long last = System.nanoTime();
        for (boolean said = false; !Files.exists(go); Thread.sleep(5)) {
            if (!said && done.get() > 2000) {
                System.out.println("ready");
                said = true;
            }
            long now = System.nanoTime();
            if (now < last)
                throw new Error("the clock went back by " + (last - now));
            last = now;
        }
        long before = done.get();
        while (done.get() < before + 500)
            Thread.sleep(5);
        over.set(true);
        long total = 0;
        for (Future<Long> future : futures)
            total += future.get(30, TimeUnit.SECONDS);
        pool.shutdown();
        if (wrong.get() != 0 || total != done.get())
            throw new Error(wrong + " wrong, " + total + " of " + done);
        System.gc();
        System.out.println("did " + total);
        System.out.println("pass");
    }
}
"""


def test_jvm(journeys: Journeys) -> None:
    """G1 and the JIT at work under four threads, whose results are checked one by one."""
    program = journeys.pair.directory / "Load.java"
    program.write_text(JAVA)
    journey = journeys.run("java", ["java", "-XX:+UseG1GC", "-Xmx64m", str(program)])
    wait_until("results", lambda: "ready\n" in journey.out or not journey.task.alive, 90)
    journey.must_live()
    journey.move(*AT_WORK, look=False)
    journey.tell()
    did = re.search(r"did (\d+)", journey.verdict(60))
    assert did and int(did[1]) > 2000
