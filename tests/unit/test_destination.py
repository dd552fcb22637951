"""The destination agent: what it answers."""

from __future__ import annotations

import hashlib
import os
import struct
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile

from agents import hostfacts
from agents.elf import BASE, elf
from migrate.engine.program import OpKind, Program
from migrate.pie import blob
from migrate.transport import frames
from migrate.transport.agent import AgentError
from migrate.transport.frames import CONTENTS, PAGE, Run
from tests.unit.asking import ID, Side, alive, fake, prepare, wait_gone, with_agent


def test_facts(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_bytes(b"0123456789")
    link.symlink_to("file")
    missing = str(tmp_path / "missing")

    async def test(subject: Side) -> None:
        ask = subject.agent.request
        hello = await ask("hello")
        assert hello["agent"] == hostfacts.VERSION and hello["page_size"] == PAGE
        assert hello["uid"] == os.geteuid() and hello["release"] == os.uname().release
        caps = int(Path("/proc/self/status").read_text().partition("CapEff:")[2].split()[0], 16)
        assert hello["caps_effective"] == caps and hello["pid"] == subject.stream.process.pid
        read = await ask("read", paths=[str(file), missing, "/proc/sys/kernel/ostype", str(tmp_path)])
        assert read["lengths"] == [10, -2, 6, -21] and read.blob == b"0123456789Linux\n"
        stats = (await ask("stat", paths=[str(link), missing]))["stats"]
        assert stats[0]["size"] == 10 and stats[0]["mtime_ns"] == file.stat().st_mtime_ns and stats[1] == {"errno": 2}
        stats = (await ask("stat", paths=[str(link)], nofollow=True))["stats"]
        assert stats[0]["target"] == "file" and stats[0]["mode"] == link.lstat().st_mode
        digests = (await ask("digest", paths=[str(file), str(file), missing], lengths=[4, 100, 1]))["digests"]
        want = [hashlib.blake2b(data, digest_size=16).hexdigest() for data in (b"0123", b"0123456789")]
        assert digests == [{"digest": want[0]}, {"digest": want[1]}, {"errno": 2}]
        assert (await ask("statvfs", path=str(tmp_path)))["free_bytes"] > 0
        tids = (await ask("tids"))["tids"]
        # Seen from a PID namespace, a group or session that began outside is 0 (pid_namespaces(7)), which is no TID
        groups = {os.getpgrp(), os.getsid(0)} - {0}
        assert groups | {1, os.getpid(), hello["pid"]} <= set(tids)

    with_agent(test)


def test_refusals_keep_it_running() -> None:
    async def refused(subject: Side, verb: str, kind: str, says: str, **arguments: Any) -> None:
        with pytest.raises(AgentError, match=says) as caught:
            await subject.agent.request(verb, **arguments)
        assert caught.value.kind == kind

    async def test(subject: Side) -> None:
        await refused(subject, "fly", "protocol", "no such verb: 'fly'")
        await refused(subject, "read", "protocol", "paths")
        await refused(subject, "run", "protocol", "there is no overseer", parts=[])
        await refused(subject, "stdio_log", "protocol", "not a file name", name="../x")
        await refused(subject, "statvfs", "os", "No such file", path="/no/such/path")
        await subject.agent.send_pages(1, 0, frames.pages_meta([Run(0, 1)]), bytes(PAGE))
        await refused(subject, "sync", "pages", "before there was an overseer")
        await subject.agent.request("abort")
        await subject.agent.request("sync")

    with_agent(test)


def test_stdio_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    paths: list[Path] = []

    async def test(subject: Side) -> None:
        for _ in range(2):
            paths.append(Path((await subject.agent.request("stdio_log", name="xz-812.log"))["path"]))
        assert len(set(paths)) == 2
        for path in paths:
            assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
        if committed:
            await subject.agent.request("begin", migration=ID, lease=9, about={})
            await subject.agent.request("overseer", restorees=0)
            await prepare(subject, b"ok", b"go")
            await subject.agent.request("commit")

    committed = False
    with_agent(test, fake(tmp_path / "pages"))
    assert not any(path.exists() for path in paths)
    committed = True
    paths.clear()
    with_agent(test, fake(tmp_path / "pages"))
    assert all(path.exists() for path in paths)


# Routing, with a stand-in for the restorer


def test_programs_are_routed(pages: Path) -> None:
    async def test(subject: Side) -> None:
        ask = subject.agent.request
        started = await ask("overseer", restorees=2)
        assert alive(started["pid"]) and "fake_restorer" in Path(f"/proc/{started['pid']}/cmdline").read_text()
        assert "[stack]" in started["maps"]
        assert os.readlink(f"/proc/{started['pid']}/fd/4") == "/dev/null"
        descriptors = {int(name) for name in os.listdir(f"/proc/{started['pid']}/fd")}
        assert {0, 1, 2, 3, 4, 5, 6} <= descriptors
        assert os.readlink(f"/proc/{started['pid']}/fd/1") == "/dev/null"
        ours, theirs = (os.stat(f"/proc/{pid}/fd/0").st_ino for pid in (subject.stream.process.pid, started["pid"]))
        assert ours == theirs
        reply = await ask("run", b"hello", parts=[[0, len(b"hello")]], return_image=True)
        assert (reply["failed"], reply["result"], reply.blob) == (-1, 0, b"HELLO")
        reply = await ask("run", b"fail 7", parts=[[0, len(b"fail 7")]])
        assert (reply["failed"], reply["result"], reply.blob) == (7, -2, b"")
        with pytest.raises(AgentError, match="there is no slot 3"):
            await ask("run", b"x", parts=[[3, len(b"x")]])
        reply = await ask("run", b"onetwo!", parts=[[0, 3], [0, 4]], return_image=True)
        assert (reply["part"], reply["failed"], reply.blob) == (1, -1, b"TWO!")
        reply = await ask("run", b"onefail 7never", parts=[[0, 3], [0, 6], [0, 5]])
        assert (reply["part"], reply["failed"]) == (1, 7)
        for staged in (b"forgotten", b"onetwo!"):
            await ask("stage", staged)
        assert (await ask("run", b"x", parts=[[0, 1]], return_image=True)).blob == b"X"
        reply = await ask("run", parts=[[0, 3], [0, 4]], return_image=True)
        assert (reply["part"], reply["failed"], reply.blob) == (1, -1, b"TWO!")
        with pytest.raises(AgentError, match="0 bytes of programs"):
            await ask("run", parts=[[0, 3], [0, 4]])
        with pytest.raises(AgentError, match="there is an overseer already"):
            await ask("overseer", restorees=1)
        big = os.urandom(3_000_000).hex().encode()
        assert (await ask("run", big, parts=[[0, len(big)]], return_image=True)).blob == big.upper()

    with_agent(test, fake(pages))


def test_pages_go_past_the_agent(pages: Path) -> None:
    contents = [os.urandom(PAGE * count) for count in (1, 256, 3)]

    async def test(subject: Side) -> None:
        await subject.agent.request("overseer", restorees=0)
        pending = []
        for content in contents:
            await subject.agent.send_pages(0, 0, frames.pages_meta([Run(0x1000, len(content) // PAGE)]), content)
            pending.append(await subject.agent.submit("sync"))
        await subject.agent.send_pages(0, frames.LZ4, frames.pages_meta([Run(0, 9)], frames.LZ4), b"squeezed")
        await subject.agent.request("sync")
        for each in pending:
            await each.reply()

    with_agent(test, fake(pages))
    assert pages.read_bytes() == b"".join(contents) + b"squeezed"


def test_the_first_page_failure_is_kept(pages: Path) -> None:
    bad = 0xEEEE_EEEE_EEEE_EEEE

    async def test(subject: Side) -> None:
        await subject.agent.request("overseer", restorees=0)
        await subject.agent.send_pages(0, 0, frames.pages_meta([Run(bad, 1)]), b"1" * PAGE)
        await subject.agent.send_pages(0, 0, frames.pages_meta([Run(0x1000, 1)]), b"2" * PAGE)
        await subject.agent.send_pages(9, 0, frames.pages_meta([Run(0x1000, 1)]), b"3" * PAGE)
        for verb, program in (("sync", b""), ("run", b"x"), ("commit", b"")):
            arguments: dict[str, Any] = {"parts": [[0, 1]]} if verb == "run" else {}
            with pytest.raises(AgentError, match=f"{bad:#x} \\(1 pages\\) in restoree 0: Cannot allocate") as caught:
                await subject.agent.request(verb, program, **arguments)
            assert (caught.value.kind, caught.value.errno) == ("pages", 12)

    with_agent(test, fake(pages))
    assert pages.read_bytes() == b"1" * PAGE, "what came after a failure was placed"


def test_elf_is_an_elf(tmp_path: Path) -> None:
    path = tmp_path / "elf"
    path.write_bytes(elf(blob()))
    with path.open("rb") as file:
        parsed = ELFFile(file)
        assert parsed["e_entry"] == BASE
        load, stack = parsed.iter_segments()
        assert load["p_type"] == "PT_LOAD" and load["p_vaddr"] == BASE and load.data() == blob()
        assert load["p_offset"] % load["p_align"] == load["p_vaddr"] % load["p_align"]
        assert stack["p_type"] == "PT_GNU_STACK" and not stack["p_flags"] & 1


@pytest.mark.parametrize("new_pid_namespace", [False, True])
def test_real_overseer(new_pid_namespace: bool) -> None:
    maps: list[str] = []
    address, size = 0x1000_0000, 64 * PAGE

    async def test(subject: Side) -> None:
        ask = subject.agent.request
        started = await ask("overseer", restorees=1, new_pid_namespace=new_pid_namespace)
        maps.append(started["maps"])
        assert started["maps"].startswith(f"{BASE:x}-")
        assert started["maps"] == Path(f"/proc/{started['pid']}/maps").read_text()
        assert int(Path(f"/proc/{started['pid']}/personality").read_text(), 16) == 0x0040000
        status = Path(f"/proc/{started['pid']}/status").read_text()
        assert status.partition("SigBlk:")[2].split()[0] == "0" * 16 == status.partition("SigIgn:")[2].split()[0]
        assert sorted(os.listdir(f"/proc/{started['pid']}/fd"), key=int) == ["0", "1", "2", "3", "4", "5"]
        program = Program("facts")
        pid = program.syscall("getpid", label="its number")
        where = program.space(16)
        link = program.syscall("readlinkat", -100, program.string("/proc/self"), where, 16, label="its /proc")
        program.syscall("mmap", address, size, 3, 0x100032, -1, 0, label="room", expect=address)
        linked = program.link()
        reply = await ask("run", linked.image, parts=[[0, len(linked.image)]], return_image=True)
        results = linked.results(reply.blob)
        assert results.failed is None
        number = 1 if new_pid_namespace else started["pid"]
        assert results.of(pid) == number
        assert results.bytes(where)[: results.of(link)] == str(number).encode()

        content = os.urandom(2 * PAGE)
        listed = [Run(address + 5 * PAGE, 1, CONTENTS), Run(address + 9 * PAGE, 1, CONTENTS)]
        await subject.agent.send_pages(0, 0, frames.pages_meta(listed), content)
        await ask("sync")
        program = Program("look")
        seen = [program.space(PAGE), program.space(PAGE)]
        for run, buffer in zip(listed, seen, strict=True):
            program.op(OpKind.COPY, buffer, run.address, PAGE, label="copy")
        linked = program.link()
        image = (await ask("run", linked.image, parts=[[0, len(linked.image)]], return_image=True)).blob
        assert linked.results(image).bytes(seen[0]) + linked.results(image).bytes(seen[1]) == content

        program = Program("failing")
        program.syscall("getpid", label="fine")
        program.syscall("close", 999, label="not open")
        reply = await ask("run", program.link().image, parts=[[0, len(program.link().image)]])
        assert (reply["failed"], reply["result"]) == (1, -9)
        await ask("abort")
        wait_gone(started["pid"])

    with_agent(test)
    with_agent(test)
    assert maps[0].splitlines()[1:] == maps[1].splitlines()[1:], "its addresses change from time to time"


def test_control_messages_fit_the_header() -> None:
    """The header is shared with migrate/pie/restorer.c."""
    assert struct.calcsize("<IIQ") == 16 == struct.calcsize("<iIq")
