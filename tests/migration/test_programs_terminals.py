"""Programs with pseudo-terminals, and jobs of shells, moved between two hosts and judged by what comes out of them."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests import moves
from tests.hosts import Host
from tests.migration.journey import Journey, Journeys
from tests.tasks import Task, children, status_field, wait_until

KEEP = ("--no-converge", "continue")


@pytest.mark.parametrize("victim", ["terminals", "shells"])
def test_the_victim(journeys: Journeys, victim: str) -> None:
    """Settings, sizes, what waits either way, sessions, foreground groups, hung-up ends; and a session
    in which some share descriptors, or where they are."""
    journey = journeys.start(victim)
    journey.move(*KEEP, look=False)
    journey.tell()
    journey.verdict()


HOLD = "import os, pty, sys; pty.openpty(); print(os.listdir('/dev/pts'), flush=True); sys.stdin.read()"


def test_numbers_that_are_taken(journeys: Journeys) -> None:
    """They get a directory of terminals of their own, and keep theirs."""
    pipe = subprocess.PIPE
    with journeys.pair.b.popen(["python3", "-c", HOLD], stdin=pipe, stdout=pipe, text=True) as holder:
        assert holder.stdout is not None and "'0'" in holder.stdout.readline()
        journey = journeys.start("terminals")
        outcome = journey.move(*KEEP, look=False)
        assert "terminal /dev/pts/0 is taken on" in outcome.err
        journey.tell()
        journey.verdict()
        holder.kill()


def _name(outer: int) -> str:
    return Path(f"/proc/{outer}/comm").read_text().strip()


def _in_front(leader: int) -> str:
    """The name of the program that has the terminal of a shell's session (proc_pid_stat(5): tpgid). A job that is to
    get it is a shell itself until it executes its program, and what is typed before that may be the shell's."""
    try:
        return _name(int(Path(f"/proc/{leader}/stat").read_text().rpartition(")")[2].split()[5]))
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _type(directory: Path, keys: str) -> None:
    """Into a FIFO that the program has open for both."""
    number = os.open(directory / "keys", os.O_WRONLY | os.O_NONBLOCK)
    try:
        assert os.write(number, keys.encode()) == len(keys)
    finally:
        os.close(number)


def _comes(journey: Journey, words: str) -> None:
    try:
        wait_until(f"{words!r} comes out", lambda: re.search(words, journey.out) or not journey.task.alive, 20)
        assert re.search(words, journey.out), journey.complaint
    except TimeoutError as error:
        raise AssertionError(f"{error}: {journey.complaint}") from None


SCRIPT = """
mkfifo "$VICTIM_DIR/keys"
exec script --quiet --flush --return --command 'exec bash --norc -i' "$VICTIM_DIR/typescript" <> "$VICTIM_DIR/keys"
"""


def test_script(journeys: Journeys) -> None:
    """And the shell in it, which is in the middle of editing a line."""
    journey = journeys.run("script", ["bash", "-c", SCRIPT])
    wait_until("its shell", lambda: _name(journey.task.outer) == "script" and children(journey.task.outer))
    _type(journey.directory, "PS1='prompt: '; tty; echo $((6 * 7))\n")
    _comes(journey, "prompt: $")
    (terminal,) = re.findall(r"/dev/pts/\d+", journey.out)
    assert "\n42" in journey.out
    _type(journey.directory, "echo $((7 * ")
    _comes(journey, r"prompt: echo \$\(\(7 \* $")
    journey.move(*KEEP, look=False)
    _type(journey.directory, "9))\n")
    _comes(journey, "\n63\n")
    _type(journey.directory, "tty; sleep 1000\n")
    _comes(journey, f"63(?s:.*)\n{terminal}\n")
    (shell,) = children(journey.task.outer)
    wait_until("the sleeper", lambda: _in_front(shell) == "sleep")
    _type(journey.directory, "\x03")
    _comes(journey, r"\^C(?s:.*)prompt: $")
    _type(journey.directory, "echo status $?\n")
    _comes(journey, "\nstatus 130\n")
    _type(journey.directory, "exit 3\n")
    journey.task.wait_gone()
    assert not journey.err and "status 130" in (journey.directory / "typescript").read_text()


EXPECT = r"""
set timeout 30
proc must {pattern} {
    expect {
        -re $pattern {}
        timeout { puts stderr "no $pattern"; exit 1 }
        eof { puts stderr "the end, and no $pattern"; exit 1 }
    }
}
spawn -noecho bash --norc
send "PS1='prompt: '\r"
must "\nprompt: $"
puts ready
set i 0
while {![file exists $env(VICTIM_GO)]} {
    incr i
    send "echo \$(($i * $i))\r"
    must "\n[expr $i * $i]\r\nprompt: $"
    after 1
}
send "sh -c 'echo asleep; exec sleep 1000'\r"
must "\nasleep\r"
send "\003"
must "prompt: $"
send "echo status \$?\r"
must "status 130\r"
send "sh -c 'echo reading; exec cat'\r"
must "\nreading\r"
send "to be kil\025that stays\r"
must "\nthat stays\r"
send "\004"
must "prompt: $"
send "exit 3\r"
expect eof
puts "ended with [lindex [wait] 3], dialogues: $i"
puts pass
"""


def test_expect(journeys: Journeys) -> None:
    """In the middle of a dialogue with a shell."""
    journey = journeys.run("expect", ["expect", "-c", EXPECT])
    _comes(journey, "ready")
    wait_until("its dialogue", lambda: journey.out.count("prompt: ") > 20 or not journey.task.alive)
    before = journey.out.count("prompt: ")
    journey.move(*KEEP, look=False)
    wait_until("it goes on", lambda: journey.out.count("prompt: ") > before + 20 or not journey.task.alive)
    journey.tell()
    journey.verdict(60)
    assert "ended with 3" in journey.out


class Tmux:
    """Commands for a server, on the host where it is."""

    def __init__(self, host: Host, directory: Path) -> None:
        self.host, self.socket = host, directory / "tmux"

    def __call__(self, *arguments: str) -> str:
        return self.host.run(["tmux", "-S", str(self.socket), *arguments]).stdout

    def screen(self, pane: str) -> str:
        return self("capture-pane", "-p", "-J", "-S", "-", "-t", pane)

    def type(self, pane: str, *keys: str) -> None:
        self("send-keys", "-t", pane, *keys)

    def shows(self, pane: str, words: str) -> None:
        try:
            wait_until(f"{words!r} on the screen", lambda: re.search(words, self.screen(pane), re.M), 20)
        except TimeoutError as error:
            raise AssertionError(f"{error}:\n{self.screen(pane)}") from None


def test_tmux(journeys: Journeys) -> None:
    """A server with two panes: jobs of a shell, one of them stopped and one in the background; and a program that is
    in the foreground, with half a line typed."""
    pair = journeys.pair
    directory = pair.directory / "tmux"
    directory.mkdir()
    env = {"LC_ALL": "C.UTF-8", "TERM": "xterm", "SHELL": "/bin/bash"}
    argv = ["tmux", "-D", "-S", str(directory / "tmux"), "-f", "/dev/null"]
    journey = journeys.run("tmux", argv, env=env)
    wait_until("its socket", lambda: (directory / "tmux").exists() or not journey.task.alive)
    journey.must_live()
    here = Tmux(pair.a, directory)
    here("new-session", "-d", "-s", "work", "-x", "100", "-y", "30", "bash --norc")
    here("split-window", "-t", "work:0", "-v", "bash --norc -c 'stty -a | head -1; exec cat'")
    jobs, cat = "work:0.0", "work:0.1"
    here.type(jobs, "PS1='prompt: '", "Enter")
    here.type(jobs, "(sleep 1001; exit 1) & first=$!", "Enter")
    here.type(jobs, "(trap 'exit 17' USR1; while :; do sleep 0.05; done) & second=$!", "Enter")
    here.type(jobs, "tty; sleep 1002", "Enter")
    here.shows(jobs, "^/dev/pts/[0-9]+$")
    (terminal,) = re.findall("^/dev/pts/[0-9]+$", here.screen(jobs), re.M)
    shell = children(journey.task.outer)[0]
    wait_until("the jobs", lambda: len(children(shell)) == 3 and _in_front(shell) == "sleep")
    here.type(jobs, "C-z")
    here.shows(jobs, r"^\[3\]\+ +Stopped")
    here.type(jobs, "echo $((5", "*")
    here.type(cat, "half a li")
    here.shows(cat, "half a li$")
    screens = [here.screen(pane) for pane in (jobs, cat)]

    journey.move(*KEEP, look=False)
    there = Tmux(pair.b, directory)
    assert [there.screen(pane) for pane in (jobs, cat)] == screens
    there.type(jobs, "11))", "Enter")
    there.shows(jobs, "^55$")
    there.type(cat, "BSpace", "BSpace", "line", "Enter")
    there.shows(cat, "^half a line\nhalf a line$")
    there.type(jobs, "clear; tty; jobs", "Enter")
    there.shows(jobs, r"^\[2\].*Running")
    assert re.search(rf"^{terminal}$", there.screen(jobs), re.M)
    assert re.search(r"^\[1\].*Running", there.screen(jobs), re.M), there.screen(jobs)
    assert re.search(r"^\[3\]\+ +Stopped +sleep 1002", there.screen(jobs), re.M), there.screen(jobs)
    there.type(jobs, "clear; kill %1; kill -USR1 %2; wait $first; echo one $?; wait $second; echo two $?", "Enter")
    there.shows(jobs, "^one 143$")
    there.shows(jobs, "^two 17$")
    there.type(jobs, "clear; fg", "Enter")
    there.shows(jobs, "^sleep 1002$")
    shell = children(journey.task.outer)[0]
    wait_until("it is in front", lambda: _in_front(shell) == "sleep")
    there.type(jobs, "C-c")
    there.type(jobs, "echo three $?", "Enter")
    there.shows(jobs, "^three 130$")
    there("resize-window", "-t", "work:0", "-x", "80", "-y", "40")
    # tmux tells its panes of it a moment later
    there.type(jobs, "clear; until stty size | grep ' 80$'; do sleep 0.1; done", "Enter")
    there.shows(jobs, "^[0-9]+ 80$")
    there.type(cat, "C-c")
    wait_until("the second pane gone", lambda: there("list-panes", "-t", "work:0").count("\n") == 1)
    there.type(jobs, "exit", "Enter")
    # tmux, moved or not, may come to wait for it only when something else happens
    wait_until("its end", lambda: all(status_field(pid, "State")[:1] == ["Z"] for pid in children(journey.task.outer)))
    there("kill-server")
    journey.task.wait_gone()


FLOOD = 'i=0; until [ -e "$VICTIM_GO" ]; do echo "n$((i++))"; done; echo end'


def test_tmux_with_more_output_than_it_takes(journeys: Journeys) -> None:
    """What is on its way through the terminal is neither lost nor there twice."""
    pair = journeys.pair
    directory = pair.directory / "flood"
    directory.mkdir()
    env = {"LC_ALL": "C.UTF-8", "TERM": "xterm", "SHELL": "/bin/bash"}
    argv = ["tmux", "-D", "-S", str(directory / "tmux"), "-f", "/dev/null"]
    journey = journeys.run("tmux", argv, env=env)
    wait_until("its socket", lambda: (directory / "tmux").exists() or not journey.task.alive)
    here, log = Tmux(pair.a, directory), directory / "log"
    here("new-session", "-d", "-s", "flood", "cat")
    here("pipe-pane", "-t", "flood:0", f"exec cat > {log}")
    go = journey.directory / "go"
    here("respawn-pane", "-k", "-t", "flood:0", f"export VICTIM_GO={go}; {FLOOD}; sleep 1; exec cat")
    wait_until("a flood", lambda: log.exists() and log.stat().st_size > 100_000, 20)
    outcome = journey.move(*KEEP, "--max-rounds", "3", look=False)
    size = log.stat().st_size
    wait_until("it goes on", lambda: log.stat().st_size > size + 100_000, 20)
    journey.tell()
    wait_until("its end", lambda: log.read_bytes().endswith(b"end\r\n"), 60)
    lines = log.read_bytes().decode().replace("\r", "").split("\n")
    numbers = [int(line[1:]) for line in lines[1:-2]]  # the first may be half of one
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), outcome.err
    Tmux(pair.b, directory)("kill-server")
    journey.task.wait_gone()


JOB = """
set -m
{ for i in $(seq 100000); do [ -e "$VICTIM_GO" ] && break; echo "$i"; sleep 0.02; done | sed 's/^/line /'
  ps -o tty= $$ >&2; (exec < /dev/tty) 2> /dev/null || echo no terminal; echo pass; } & # a job, which is moved
echo "job $!"
wait
echo shell ended
"""


def test_a_job_of_a_shell_with_a_terminal(journeys: Journeys) -> None:
    """All of it goes on without one, which is said, and what it writes goes where it is to go."""
    pair = journeys.pair
    job_file = pair.directory / "job.sh"
    job_file.write_text(JOB)
    journey = journeys.run("shell", ["script", "--quiet", "--flush", "--command", f"bash {job_file}", "/dev/null"])
    _comes(journey, "job [0-9]+(?s:.*)line 10")
    number = re.search("job ([0-9]+)", journey.out)
    assert number is not None
    job = Task(pair.a.host_pid(int(number[1])), int(number[1]))
    pair.a.tasks.append(job)
    log = pair.directory / "job.log"
    moved, outcome = moves.move(pair, job, *KEEP, "--stdio", str(log))
    assert f"the controlling terminal of pid {job.pid}" in outcome.err
    wait_until("it goes on", lambda: log.exists() and "line" in log.read_text())
    _comes(journey, "shell ended")
    journey.tell()
    moved.wait_gone()
    said = log.read_text().split("\n")
    assert said[-3:] == ["no terminal", "pass", ""], said[-5:]
    lines = list(map(int, re.findall("^line ([0-9]+)$", journey.out + "\n" + log.read_text(), re.M)))
    assert lines == list(range(1, len(lines) + 1)), (journey.out[-200:], log.read_text()[:200])
