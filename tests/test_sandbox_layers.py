"""The layers that hold an untrusted program: what right programs still do inside them, and what hostile ones try.

Every attempt runs in a child forked from a fresh interpreter, as the sandbox's children are, once as this user and,
where this user is root, once as nobody. Dangerous attempts are made only after a harmless one has been refused. Left
out: the mounts, the limits and the protocol around the child.
"""

import functools
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from errno import ENOSYS, EPERM
from pathlib import Path

import pytest

from grpo_math.sandbox import landlock, seccomp

NOBODY = 65534
USERS = [None, NOBODY] if os.geteuid() == 0 else [None]
BOTH = ("landlock", "seccomp")

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="seccomp and Landlock are Linux's")
needs_seccomp = pytest.mark.skipif(
    not seccomp.supported(), reason="this kernel or machine has no seccomp filter of ours"
)
needs_landlock = pytest.mark.skipif(landlock.abi() < 3, reason=f"Landlock ABI {landlock.abi()} is less than 3")
as_each_user = pytest.mark.parametrize("user", USERS, ids=lambda user: "nobody" if user else "self")

# nobody cannot read an interpreter in root's home: its child drops to nobody after the imports, so they come first
CHILD = r"""
import json, sys
job = json.load(sys.stdin)
sys.path.insert(0, job["root"])
import asyncio, asyncio.runners, asyncio.threads, concurrent.futures.thread, ctypes, decimal, encodings.idna, errno
import fcntl
import mmap, os, pathlib, queue, random, resource, secrets, select, shutil, signal, socket, stat, subprocess, tarfile
import tempfile, termios, threading, time
from grpo_math.sandbox import landlock, seccomp

if job["user"]:
    try:
        import numpy
    except ImportError:
        pass
libc = ctypes.CDLL(None, use_errno=True)
N = {}
if seccomp.ARCHITECTURE:
    for table in (seccomp.ALLOWED, seccomp.PRETENDED, seccomp.DENIED, " ".join(seccomp.CHECKED)):
        N |= seccomp.numbers(table, seccomp.ARCHITECTURE)

def raw(number, *arguments):
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in (number, *arguments)]
    result = libc.syscall(*words)
    if result == -1:
        raise OSError(ctypes.get_errno(), "refused")
    return result

def call(name, *arguments):
    if name not in N:
        raise LookupError("absent")
    return raw(N[name], *arguments)

def attempt(code):
    try:
        exec(code, globals())
    except OSError as error:
        return errno.errorcode[error.errno]
    except ImportError as error:
        return "absent" if error.name == "numpy" else repr(error)
    except LookupError as error:
        return "absent" if error.args == ("absent",) else repr(error)
    except Exception as error:
        return repr(error)
    return "done"

inside, outside = job["inside"], job["outside"]
os.chdir(inside)
zygote = os.getpid()
listener = socket.socket(socket.AF_UNIX)
listener.bind("")  # takes an abstract address
listener.listen(1)
child = os.fork()
if child:
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.kill(os.getpid(), -code) if code < 0 else os._exit(code)
rules = None
if "landlock" in job["layers"]:
    rules = landlock.ruleset([*job["read"], "/no/such/folder"], [inside, os.devnull])
if job["user"]:
    os.setgroups([])
    os.setresgid(job["user"], job["user"], job["user"])
    os.setresuid(job["user"], job["user"], job["user"])
seccomp.no_new_privs()
if rules is not None:
    landlock.restrict(rules)
    os.close(rules)
    assert attempt("open(outside + '/secret')") == "EACCES", "Landlock does not hold"
if "seccomp" in job["layers"]:
    seccomp.install(seccomp.filter_program(os.getpid(), job["allow_fork"]))
    # of a kernel, it would ask which Landlock it has
    assert attempt("call('landlock_create_ruleset', None, 0, 1)") == "EPERM", "the filter does not hold"
print(json.dumps({name: attempt(code) for name, code in job["cases"].items()}), flush=True)
os._exit(0)
"""


def start(
    layers: tuple[str, ...], cases: dict[str, str], user: int | None, allow_fork: bool = False
) -> subprocess.CompletedProcess[str]:
    """The finished process whose child, within the layers, made the attempts, and printed {name: what came of it}."""
    place = Path(tempfile.mkdtemp())
    try:
        for folder in (place, place / "inside", place / "outside", place / "readable"):
            folder.mkdir(exist_ok=True)
            for name in ("secret", "doomed", "a", "b"):
                (folder / name).write_text("as it was")
        for path in (place, *place.rglob("*")):
            os.chown(path, user or -1, user or -1)
        job = {"root": str(Path(seccomp.__file__).parents[2]), "user": user, "layers": layers, "cases": cases}
        job |= {"inside": str(place / "inside"), "outside": str(place / "outside"), "allow_fork": allow_fork}
        job["read"] = [
            str(place / "readable"),
            "/usr",
            "/lib",
            "/lib64",
            "/etc",
            "/proc",
            "/dev/urandom",
            sys.prefix,
            sys.base_prefix,
        ]
        run = [sys.executable, "-I", "-c", CHILD]
        return subprocess.run(run, input=json.dumps(job), capture_output=True, text=True, timeout=60)
    finally:
        shutil.rmtree(place)


@functools.cache
def outcomes(layers: tuple[str, ...], table: str, user: int | None, allow_fork: bool = False) -> dict[str, str]:
    cases = {name: case[0] if isinstance(case, tuple) else case for name, case in TABLES[table].items()}
    finished = start(layers, cases, user, allow_fork)
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)


WORKS = {
    "threads": "t = [threading.Thread(target=time.sleep, args=(0.01,)) for _ in range(4)]; [u.start() for u in t]; "
    "[u.join() for u in t]",
    "thread pool": "with concurrent.futures.ThreadPoolExecutor(4) as pool: assert sum(pool.map(abs, [-4, 5])) == 9",
    "queue": "q = queue.Queue(); threading.Thread(target=q.put, args=(7,)).start(); assert q.get(timeout=5) == 7",
    "asyncio": "async def main():\n  await asyncio.gather(asyncio.sleep(0.01), asyncio.to_thread(time.sleep, 0.01))\n"
    "  return 3\nassert asyncio.run(main()) == 3",
    "socketpair": "a, b = socket.socketpair(); a.sendall(b'hi'); assert b.recv(2) == b'hi'; b.send(b'x'); "
    "assert a.recvmsg(1)[0] == b'x'; "
    "a.settimeout(1); a.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1); a.close()",
    "pipes": "r, w = os.pipe(); os.write(w, b'x'); assert select.select([r], [], [], 1)[0] == [r]; "
    "os.set_blocking(r, False)",
    "epoll": "e = select.epoll(); r, w = os.pipe(); e.register(r, select.EPOLLIN); os.write(w, b'x'); assert e.poll(1)",
    "sleep": "time.sleep(0.01); time.monotonic(), time.time(), time.process_time(), time.thread_time()",
    "random": "random.Random().random(), secrets.token_bytes(8), os.urandom(4)",
    "decimal": "decimal.getcontext().prec = 50; assert str(decimal.Decimal(2).sqrt()).startswith('1.41421356')",
    "temporary folder": "with tempfile.TemporaryDirectory(dir=inside) as d:\n"
    "  p = pathlib.Path(d, 'x'); p.write_text('1')\n"
    "  p.rename(pathlib.Path(d, 'y')); os.mkdir(d + '/sub'); os.replace(d + '/y', d + '/sub/z')\n"
    "  assert [f for *_, f in os.walk(d)] == [[], ['z']]; os.truncate(d + '/sub/z', 0)\n"
    "  os.link(d + '/sub/z', d + '/l'); os.symlink('l', d + '/s'); assert os.readlink(d + '/s') == 'l'",
    "temporary file": "with tempfile.TemporaryFile(dir=inside) as f: f.write(b'xy'); f.seek(1); assert f.read()",
    "copies": "shutil.copy2('a', 'copy'); "
    "shutil.copytree('.', 'tree', ignore=lambda *_: ['tree']); shutil.rmtree('tree')",
    "tar": "t = tarfile.open('t.tar', 'w'); t.add('a'); t.close(); tarfile.open('t.tar').extractall('untarred')",
    "touch": "pathlib.Path('new').touch(); pathlib.Path('a').touch(); os.chmod('a', 0o600)",
    "locks": "f = open('a', 'r+'); fcntl.flock(f, fcntl.LOCK_EX); fcntl.lockf(f, fcntl.LOCK_UN); os.fsync(f.fileno())",
    "terminal asked": "assert not os.isatty(0); shutil.get_terminal_size(); open(os.devnull, 'w').write('x')",
    "memory": "m = mmap.mmap(-1, 1 << 20); m[:2] = b'ab'; m.madvise(mmap.MADV_DONTNEED); m.close(); bytearray(1 << 26)",
    "mapped file": "f = open('b', 'r+b'); m = mmap.mmap(f.fileno(), 0); m[:1] = b'A'; m.flush(); m.close()",
    "interval timer": "h = []; signal.signal(signal.SIGALRM, lambda *_: h.append(1)); "
    "signal.setitimer(signal.ITIMER_REAL, 0.01); time.sleep(0.05); assert h; signal.alarm(9); signal.alarm(0)",
    "signals to itself": "os.kill(os.getpid(), 0); h = []; signal.signal(signal.SIGUSR1, lambda *_: h.append(1)); "
    "signal.raise_signal(signal.SIGUSR1); os.kill(os.getpid(), signal.SIGUSR1); "
    "signal.pthread_kill(threading.get_ident(), signal.SIGUSR1); assert len(h) == 3",
    "deep recursion": "sys.setrecursionlimit(100000); threading.stack_size(1 << 28); h = []\n"
    "def f(n): return n and 1 + f(n - 1)\n"
    "t = threading.Thread(target=lambda: h.append(f(50000))); t.start(); t.join(); assert h == [50000]\n"
    "threading.stack_size(0)",
    "stack limit": "s = resource.RLIMIT_STACK; resource.setrlimit(s, resource.getrlimit(s)); resource.getrusage(0)",
    "numpy": "import numpy; a = numpy.random.default_rng(0).random((300, 300)); "
    "assert numpy.allclose(numpy.linalg.solve(a, a @ a), a)",
    "who am I": "os.uname(), os.cpu_count(), os.sched_getaffinity(0), os.getppid(), os.getuid(), os.getcwd()",
}

# name: (attempt, what must come of it within the filter alone)
REFUSED = {
    "a socket": ("socket.socket()", "EPERM"),
    "a unix socket": ("socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)", "EPERM"),
    "a datagram socketpair": ("socket.socketpair(type=socket.SOCK_DGRAM)", "EPERM"),
    "a packet socketpair": ("socket.socketpair(type=socket.SOCK_SEQPACKET)", "EPERM"),
    "an abstract address": ("socket.socketpair()[0].sendto(b'x', b'\\0anyone')", "EISCONN"),
    "an abstract address by sendmsg": ("socket.socketpair()[0].sendmsg([b'x'], [], 0, b'\\0anyone')", "EPERM"),
    "a socket in a message": ("a, b = socket.socketpair(); socket.send_fds(a, [b'x'], [b.fileno()])", "EPERM"),
    "out-of-band data": ("socket.socketpair()[0].send(b'x', socket.MSG_OOB)", "EPERM"),
    "a socket's filter": ("socket.socketpair()[0].setsockopt(socket.SOL_SOCKET, 26, b'x' * 16)", "EPERM"),
    "fork": ("os.fork() or os._exit(0)", "EPERM"),
    "a raw fork": ("call('clone', signal.SIGCHLD, 0, 0, 0, 0) or os._exit(0)", "EPERM"),
    "vfork's clone": ("call('clone', 0x4100 | signal.SIGCHLD, 0, 0, 0, 0) or os._exit(0)", "EPERM"),
    "a thread in a user namespace": ("call('clone', 0x10000000 | 0x3D0F00, 0, 0, 0, 0)", "EPERM"),
    "clone3": ("raw(435, b'\\0' * 88, 88)", "ENOSYS"),
    "subprocess": ("subprocess.run(['/bin/true'])", "EPERM"),
    "posix_spawn": ("os.posix_spawn('/bin/true', ['true'], {})", "EPERM"),
    "execve": ("os.execv('/bin/true', ['true'])", "EPERM"),
    "execveat": ("call('execveat', -100, b'/bin/true', 0, 0, 0)", "EPERM"),
    "unshare": ("call('unshare', 0x10000000)", "EPERM"),
    "setns": ("call('setns', -1, 0)", "EPERM"),
    "bpf": ("call('bpf', 0, 0, 0)", "EPERM"),
    "perf": ("call('perf_event_open', 0, 0, -1, -1, 0)", "EPERM"),
    "io_uring": ("call('io_uring_setup', 1, b'\\0' * 120)", "EPERM"),
    "userfaultfd": ("call('userfaultfd', 0)", "EPERM"),
    "keyctl": ("call('keyctl', 0, -3, 0)", "EPERM"),
    "ptrace of the parent": ("call('ptrace', 0x4206, zygote, 0, 0)", "EPERM"),
    "pidfd of the parent": ("call('pidfd_open', zygote, 0)", "EPERM"),
    "prlimit of the parent": ("resource.prlimit(zygote, resource.RLIMIT_CPU)", "EPERM"),
    "a limit raised": ("call('prlimit64', 0, resource.RLIMIT_CPU, b'\\xff' * 16, 0)", "EPERM"),
    "a new filter": ("call('seccomp', 1, 0, 0)", "EPERM"),
    "memfd": ("call('memfd_create', b'x', 0)", "EPERM"),
    "shmget": ("call('shmget', 0, 4096, 0o1600)", "EPERM"),
    "poisoned memory": ("call('madvise', 0, 0, 100)", "EPERM"),
    "kill 0": ("os.kill(0, 0)", "EPERM"),
    "kill -1": ("os.kill(-1, 0)", "EPERM"),
    "kill init": ("os.kill(1, 0)", "EPERM"),
    "kill the parent": ("os.kill(zygote, 0)", "EPERM"),
    "kill the group": ("os.killpg(os.getpgrp(), 0)", "EPERM"),
    "tgkill the parent": ("call('tgkill', zygote, zygote, 0)", "EPERM"),
    "tkill the parent": ("call('tkill', zygote, 0)", "EPERM"),
    "F_SETOWN": ("fcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, zygote)", "EPERM"),
    "F_SETOWN_EX": ("fcntl.fcntl(os.pipe()[0], 15, b'\\0' * 8)", "EPERM"),
    "F_SETSIG": ("fcntl.fcntl(os.pipe()[0], 10, 9)", "EPERM"),
    "F_SETLEASE": ("fcntl.fcntl(open('a'), fcntl.F_SETLEASE, fcntl.F_RDLCK)", "EPERM"),
    "F_NOTIFY": ("fcntl.fcntl(os.open('.', 0), fcntl.F_NOTIFY, 1)", "EPERM"),
    "O_ASYNC": ("fcntl.fcntl(os.pipe()[0], fcntl.F_SETFL, os.O_ASYNC)", "EPERM"),
    "FIOSETOWN": ("fcntl.ioctl(os.pipe()[0], 0x8901, b'\\0' * 4)", "EPERM"),
    "TIOCSTI": ("fcntl.ioctl(0, termios.TIOCSTI, b'x')", "EPERM"),
    "death signal": ("if libc.prctl(1, 0, 0, 0, 0): raise OSError(ctypes.get_errno(), '')", "EPERM"),
    "dumpable": ("if libc.prctl(4, 1, 0, 0, 0): raise OSError(ctypes.get_errno(), '')", "EPERM"),
    "a FIFO": ("os.mkfifo('fifo')", "EPERM"),
    "a niceness": ("os.nice(0); os.setpriority(os.PRIO_PROCESS, 0, 0)", "EPERM"),
    "an affinity": ("os.sched_setaffinity(0, os.sched_getaffinity(0))", "EPERM"),
    "mode outside": ("p = outside + '/secret'; os.chmod(p, 0); assert os.stat(p).st_mode & 0o777", "done"),
    "time outside": ("p = outside + '/secret'; os.utime(p, (1, 1)); assert os.stat(p).st_mtime != 1", "done"),
    "an owner": ("os.chown('a', -1, -1)", "EPERM"),
    "no such call": ("raw(9999)", "ENOSYS"),
    "x32's getpid": ("raw(0x40000000 | N['getpid'])", "ENOSYS"),
    "x32's execve": ("raw(0x40000000 | 520, b'/bin/true', 0, 0)", "ENOSYS"),
}

# within Landlock alone: name: (attempt, what must come of it, the first ABI that refuses); without it, each is done
CONFINED = {
    "reading": ("open(outside + '/secret').read()", "EACCES", 3),
    "listing": ("os.listdir(outside)", "EACCES", 3),
    "opening for writing": ("open(outside + '/b', 'r+')", "EACCES", 3),
    "creating": ("open(outside + '/new', 'w')", "EACCES", 3),
    "truncating": ("os.truncate(outside + '/a', 0)", "EACCES", 3),
    "truncating by open": ("os.open(outside + '/a', os.O_RDONLY | os.O_TRUNC)", "EACCES", 3),
    "writing what may be read": ("p = outside + '/../readable/a'; open(p).read(); open(p, 'r+')", "EACCES", 3),
    "removing what may be read": ("os.unlink(outside + '/../readable/doomed')", "EACCES", 3),
    "removing": ("os.unlink(outside + '/doomed')", "EACCES", 3),
    "a folder": ("os.mkdir(outside + '/folder')", "EACCES", 3),
    "linking in": ("os.link(outside + '/a', inside + '/linked')", "EXDEV", 3),
    "linking out": ("os.link(inside + '/a', outside + '/linked')", "EACCES", 3),
    "a symbolic link out": ("os.symlink('a', outside + '/link')", "EACCES", 3),
    "through a link": ("os.symlink(outside + '/secret', 'link'); open('link').read()", "EACCES", 3),
    "renaming in": ("os.rename(outside + '/b', inside + '/renamed')", "EACCES", 3),
    "renaming out": ("os.rename(inside + '/b', outside + '/renamed')", "EACCES", 3),
    "execution": ("subprocess.run(['/bin/true'], check=True)", "EACCES", 3),
    "TCP bind": ("socket.socket().bind(('127.0.0.1', 0))", "EACCES", 4),
    "an abstract socket": ("socket.socket(socket.AF_UNIX).connect(listener.getsockname())", "EPERM", 6),
    "a signal out": ("os.kill(zygote, 0)", "EPERM", 6),
}

TABLES = {"works": WORKS, "refused": REFUSED, "confined": CONFINED}
if seccomp.ARCHITECTURE:
    denied = seccomp.numbers(seccomp.DENIED, seccomp.ARCHITECTURE)
    TABLES["denied"] = {name: f"call({name!r}, -1, -1, -1, -1, -1, -1)" for name in denied}


@needs_seccomp
@needs_landlock
@as_each_user
@pytest.mark.parametrize("name", WORKS)
def test_right_programs_still_run(name: str, user: int | None) -> None:
    outcome = outcomes(BOTH, "works", user)[name]
    if outcome == "absent":
        pytest.skip(f"{name} is not installed")
    assert outcome == "done"


@needs_seccomp
@as_each_user
@pytest.mark.parametrize("name", REFUSED)
def test_the_filter_refuses(name: str, user: int | None) -> None:
    assert outcomes(("seccomp",), "refused", user)[name] == REFUSED[name][1]


@needs_seccomp
@as_each_user
def test_every_denied_call_answers_eperm(user: int | None) -> None:
    answers = outcomes(("seccomp",), "denied", user)
    assert len(answers) > 100
    assert {name: answer for name, answer in answers.items() if answer != "EPERM"} == {}


@needs_landlock
@as_each_user
@pytest.mark.parametrize("name", CONFINED)
def test_landlock_confines(name: str, user: int | None) -> None:
    _, refusal, since = CONFINED[name]
    if landlock.abi() < since:
        pytest.skip(f"Landlock ABI {landlock.abi()} is less than {since}")
    assert outcomes(("landlock",), "confined", user)[name] == refusal


@pytest.mark.parametrize("name", CONFINED)
def test_what_landlock_confines_is_possible_without_it(name: str) -> None:
    assert outcomes((), "confined", None)[name] == "done"


@needs_seccomp
def test_a_call_of_another_instruction_set_kills() -> None:
    if seccomp.platform.machine() != "x86_64":
        pytest.skip("written in x86's machine code")
    # mov eax, 20 (getpid); int 0x80; ret
    code = (
        "m = mmap.mmap(-1, 4096, prot=7); m.write(bytes.fromhex('b814000000cd80c3')); "
        "ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))()"
    )
    # a kernel built without 32-bit calls faults before the filter sees one
    assert start(("seccomp",), {"int 0x80": code}, None).returncode in (-signal.SIGSYS, -signal.SIGSEGV)


@needs_seccomp
@as_each_user
def test_fork_may_be_allowed_and_nothing_more(user: int | None) -> None:
    cases = {
        "fork": "p = os.fork() or os._exit(7); assert os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]) == 7",
        "exec": "subprocess.run(['/bin/true'])",
        "namespace": "call('clone', 0x10000000 | signal.SIGCHLD, 0, 0, 0, 0) or os._exit(0)",
        "sibling": "call('clone', 0x8000 | signal.SIGCHLD, 0, 0, 0, 0) or os._exit(0)",
        "thread": "t = threading.Thread(target=int); t.start(); t.join()",
    }
    finished = start(("seccomp",), cases, user, allow_fork=True)
    assert json.loads(finished.stdout) == {
        "fork": "done",
        "exec": "EPERM",
        "namespace": "EPERM",
        "sibling": "EPERM",
        "thread": "done",
    }


def answer(program: bytes, audit: int, number: int, *arguments: int) -> int:
    """What the kernel would make of the packed filter: the action, by the definition of classic BPF."""
    words = struct.pack("<IIQ6Q", number, audit, 0, *[a % 2**64 for a in (*arguments, *[0] * (6 - len(arguments)))])
    at = hand = 0
    while True:
        code, if_true, if_false, constant = struct.unpack_from("=HBBI", program, 8 * at)
        at += 1
        match code:
            case 0x20:
                hand = struct.unpack_from("<I", words, constant)[0]
            case 0x54:
                hand &= constant
            case 0x05:
                at += constant
            case 0x15:
                at += if_true if hand == constant else if_false
            case 0x35:
                at += if_true if hand >= constant else if_false
            case 0x06:
                return constant


def the_pid_filled_in(machine: str) -> bytes:
    code, holes = seccomp.template(seccomp.ARCHITECTURES[machine], allow_fork=False)
    program = bytearray(code)
    for hole in holes:
        struct.pack_into("=I", program, hole, 4242)
    return bytes(program)


@pytest.mark.parametrize("machine", seccomp.ARCHITECTURES)
def test_the_filter_of_every_machine_decides_as_the_tables_say(machine: str) -> None:
    architecture = seccomp.ARCHITECTURES[machine]
    program = the_pid_filled_in(machine)
    assert len(program) // 8 <= 4096  # BPF_MAXINSNS
    ask = functools.partial(answer, program, architecture.audit)
    eperm, enosys = seccomp.ERRNO | EPERM, seccomp.ERRNO | ENOSYS
    tables = {seccomp.ALLOWED: seccomp.ALLOW, seccomp.PRETENDED: seccomp.ERRNO, seccomp.DENIED: eperm}
    known = [number for table in tables for number in seccomp.numbers(table, architecture).values()]
    checked = seccomp.numbers(" ".join(seccomp.CHECKED), architecture)
    known += checked.values()
    assert len(known) == len(set(known)), "a number stands in two tables"
    for table, action in tables.items():
        for name, number in seccomp.numbers(table, architecture).items():
            assert ask(number) == action, name
    for number in range(2**10):
        assert ask(number | 0x40000000) == enosys
        assert number in known or ask(number) == enosys
        assert answer(program, 0x40000003, number) == seccomp.KILL  # AUDIT_ARCH_I386
    kill, limit, clone = checked["kill"], checked["prlimit64"], checked["clone"]
    assert ask(kill, 4242, 9) == seccomp.ALLOW
    assert {ask(kill, pid, 9) for pid in (0, 1, -1, -4242, 4243)} == {eperm}
    assert ask(limit, 0, 7, 0, 1) == ask(limit, 4242, 7, 0, 1) == ask(limit, 0, 3, 1, 1) == seccomp.ALLOW
    # a pointer whose low half is zero is still a pointer
    assert {ask(limit, 0, 7, 1 << 32, 0), ask(limit, 0, 7, 1, 0), ask(limit, 4241, 7, 0, 0)} == {eperm}
    # glibc's and musl's threads; then each without one of the three flags that make a thread, then with one too many
    assert {ask(clone, 0x3D0F00), ask(clone, 0x7D0F00)} == {seccomp.ALLOW}
    assert {ask(clone, 0x3D0F00 ^ flag) for flag in (0x100, 0x800, 0x10000)} == {eperm}
    more = (0x4000, 0x8000, 0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000, 17)
    assert {ask(clone, 0x3D0F00 | flag) for flag in more} == {eperm}


HEADERS = {"x86_64": "x86_64-linux-gnu/asm/unistd_64.h", "aarch64": "asm-generic/unistd.h"}


@pytest.mark.parametrize(("machine", "header"), HEADERS.items())
def test_the_numbers_are_the_headers(machine: str, header: str) -> None:
    path = Path("/usr/include", header)
    if not path.exists():
        pytest.skip(f"{header} is not installed")
    theirs = {name: int(n) for name, n in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)\s", path.read_text())}
    assert len(theirs) > 250
    if machine == "aarch64":
        theirs["newfstatat"] = theirs["fstatat"]  # two spellings of number 79
    newest = max(theirs.values())
    tables = "\n".join((seccomp.ALLOWED, seccomp.PRETENDED, seccomp.DENIED, *seccomp.CHECKED))
    ours = seccomp.numbers(tables, seccomp.ARCHITECTURES[machine])
    # calls that are newer than the header are the same number on both machines, but no header says so
    assert {name: n for name, n in ours.items() if n != theirs.get(name) and n <= newest} == {}
    lacking = {name for other in seccomp.ARCHITECTURES.values() for name in seccomp.numbers(tables, other)} - set(ours)
    assert lacking & set(theirs) == set(), "a call that the machine has is marked as lacking"


@pytest.mark.parametrize("pid", [0, -1])
def test_a_filter_is_for_one_process(pid: int) -> None:
    with pytest.raises(ValueError, match="names no single process"):
        seccomp.filter_program(pid)
