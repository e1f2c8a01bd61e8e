"""A seccomp filter for one untrusted program: an allow-list of system calls, by name, for x86_64 and aarch64.

A process that has installed it computes, runs threads, keeps time, and uses files, pipes and a socketpair. It starts no
program, opens no socket, signals nobody but itself, and reaches none of the kernel's other doors, as root too. A call
denied on purpose answers EPERM, an unknown one ENOSYS, so that libc falls back: clone3, whose flags no filter can read,
becomes clone. A call of a foreign instruction set kills the process; numbers are compared whole, so none of x32's pass.

Left to others: which files may be opened (landlock.py, mounts), and how much memory, time, disk or how many threads may
be used. Only the calling thread is bound, and those it starts: install before there are others.
"""

import ctypes
import errno
import os
import platform
import struct
import sys
from typing import NamedTuple

# Tables of name:number on x86_64/number on aarch64, where "-" is a call that the machine lacks.

ALLOWED = """
    # open files: their contents, length and place
    read:0/63 write:1/64 readv:19/65 writev:20/66 pread64:17/67 pwrite64:18/68 preadv:295/69 pwritev:296/70
    preadv2:327/286 pwritev2:328/287 lseek:8/62 sendfile:40/71 copy_file_range:326/285 open:2/- openat:257/56
    creat:85/- close:3/57 close_range:436/436 dup:32/23 dup2:33/- dup3:292/24 ftruncate:77/46 truncate:76/45
    fallocate:285/47 fsync:74/82 fdatasync:75/83 flock:73/32 fadvise64:221/223
    # names and folders: Landlock (truncate, rename, link, unlink, mkdir) and the mount namespace say where
    stat:4/- lstat:6/- fstat:5/80 newfstatat:262/79 statx:332/291 statfs:137/43 fstatfs:138/44 access:21/-
    faccessat:269/48 faccessat2:439/439 readlink:89/- readlinkat:267/78 getdents:78/- getdents64:217/61 mkdir:83/-
    mkdirat:258/34 rmdir:84/- unlink:87/- unlinkat:263/35 rename:82/- renameat:264/38 renameat2:316/276 link:86/-
    linkat:265/37 symlink:88/- symlinkat:266/36 getcwd:79/17 chdir:80/49 fchdir:81/50 umask:95/166 getxattr:191/8
    lgetxattr:192/9 fgetxattr:193/10 listxattr:194/11 llistxattr:195/12 flistxattr:196/13
    # memory, under the address-space limit
    mmap:9/222 munmap:11/215 mprotect:10/226 mremap:25/216 brk:12/214 msync:26/227
    # threads of this process, and their locks
    futex:202/98 set_robust_list:273/99 set_tid_address:218/96 rseq:334/293 membarrier:324/283 sched_yield:24/124
    sched_getaffinity:204/123 sched_getparam:143/121 sched_getscheduler:145/120 sched_getattr:315/275
    sched_get_priority_max:146/125 sched_get_priority_min:147/126 sched_rr_get_interval:148/127 getcpu:309/168
    gettid:186/178 arch_prctl:158/- restart_syscall:219/128 exit:60/93 exit_group:231/94
    # time and timers; a timer may signal only its own process
    clock_gettime:228/113 clock_getres:229/114 clock_nanosleep:230/115 nanosleep:35/101 gettimeofday:96/169
    time:201/- times:100/153 alarm:37/- getitimer:36/102 setitimer:38/103 timer_create:222/107 timer_settime:223/110
    timer_gettime:224/108 timer_getoverrun:225/109 timer_delete:226/111
    # signals received
    rt_sigaction:13/134 rt_sigprocmask:14/135 rt_sigreturn:15/139 rt_sigpending:127/136 rt_sigtimedwait:128/137
    rt_sigsuspend:130/133 sigaltstack:131/132 pause:34/- wait4:61/260 waitid:247/95
    # waiting on files, pipes and the socketpair that asyncio wakes itself by
    poll:7/- ppoll:271/73 select:23/- pselect6:270/72 epoll_create:213/- epoll_create1:291/20 epoll_ctl:233/21
    epoll_wait:232/- epoll_pwait:281/22 epoll_pwait2:441/441 eventfd:284/- eventfd2:290/19 pipe:22/- pipe2:293/59
    shutdown:48/210 getsockname:51/204 getpeername:52/205 getsockopt:55/209
    # who and where am I
    getpid:39/172 getppid:110/173 getuid:102/174 geteuid:107/175 getgid:104/176 getegid:108/177 getresuid:118/148
    getresgid:120/150 getgroups:115/158 getpgrp:111/- getpgid:121/155 getsid:124/156 getpriority:140/141
    getrlimit:97/163 getrusage:98/165 sysinfo:99/179 uname:63/160 getrandom:318/278
"""

# Answered by success, and not done. Landlock does not govern these, so that, done, they would let root, or any owner,
# change files far outside the program's folder; refused, they would fail shutil.copy and tarfile, which ask in passing.
PRETENDED = """
    chmod:90/- fchmod:91/52 fchmodat:268/53 fchmodat2:452/452 utime:132/- utimes:235/- futimesat:261/-
    utimensat:280/88
"""

DENIED = """
    # other programs and other processes
    vfork:58/- execve:59/221 execveat:322/281 ptrace:101/117 process_vm_readv:310/270 process_vm_writev:311/271
    process_madvise:440/440 process_mrelease:448/448 kcmp:312/272 pidfd_open:434/434 pidfd_send_signal:424/424
    pidfd_getfd:438/438 rt_sigqueueinfo:129/138 rt_tgsigqueueinfo:297/240 setsid:112/157 setpgid:109/154
    # the network, and any socket with an address
    # sendmsg too: full sockets that are sent over sockets are memory that no limit counts
    socket:41/198 connect:42/203 bind:49/200 listen:50/201 accept:43/202 accept4:288/242 sendmsg:46/211 sendmmsg:307/269
    recvmmsg:299/243
    # mounts, roots and namespaces
    mount:165/40 umount2:166/39 open_tree:428/428 move_mount:429/429 fsopen:430/430 fsconfig:431/431 fsmount:432/432
    fspick:433/433 mount_setattr:442/442 pivot_root:155/41 chroot:161/51 unshare:272/97 setns:308/268
    # wide doors into the kernel
    bpf:321/280 perf_event_open:298/241 userfaultfd:323/282 io_uring_setup:425/425 io_uring_enter:426/426
    io_uring_register:427/427 keyctl:250/219 add_key:248/217 request_key:249/218 seccomp:317/277
    landlock_create_ruleset:444/444 landlock_add_rule:445/445 landlock_restrict_self:446/446
    # the machine: modules, clocks, names, swap, accounts
    init_module:175/105 finit_module:313/273 delete_module:176/106 kexec_load:246/104 kexec_file_load:320/294
    reboot:169/142 swapon:167/224 swapoff:168/225 settimeofday:164/170 clock_settime:227/112 clock_adjtime:305/266
    adjtimex:159/171 sethostname:170/161 setdomainname:171/162 syslog:103/116 acct:163/89 quotactl:179/60
    quotactl_fd:443/443 vhangup:153/58 iopl:172/- ioperm:173/- modify_ldt:154/- personality:135/92
    # rights and owners: chown, the setuid family, capabilities, attributes
    setuid:105/146 setgid:106/144 setreuid:113/145 setregid:114/143 setresuid:117/147 setresgid:119/149
    setfsuid:122/151 setfsgid:123/152 setgroups:116/159 capset:126/91 chown:92/- fchown:93/55 lchown:94/-
    fchownat:260/54 setxattr:188/5 lsetxattr:189/6 fsetxattr:190/7 removexattr:197/14 lremovexattr:198/15
    fremovexattr:199/16
    # memory and queues that no limit of the process counts
    memfd_create:319/279 memfd_secret:447/447 shmget:29/194 shmat:30/196 shmctl:31/195 shmdt:67/197 semget:64/190
    semop:65/193 semtimedop:220/192 semctl:66/191 msgget:68/186 msgsnd:69/189 msgrcv:70/188 msgctl:71/187
    mq_open:240/180 mq_unlink:241/181 mq_timedsend:242/182 mq_timedreceive:243/183 mq_notify:244/184
    mq_getsetattr:245/185 mlock:149/228 mlock2:325/284 mlockall:151/230 munlock:150/229 munlockall:152/231
    vmsplice:278/75 splice:275/76 tee:276/77
    # where and how soon it is scheduled
    setpriority:141/140 ioprio_set:251/30 sched_setscheduler:144/119 sched_setparam:142/118 sched_setattr:314/274
    sched_setaffinity:203/122 mbind:237/235 set_mempolicy:238/237 set_mempolicy_home_node:450/450
    migrate_pages:256/238 move_pages:279/239
    # files by handle, watches on files, device nodes and FIFOs, flushing the whole machine
    name_to_handle_at:303/264 open_by_handle_at:304/265 inotify_init:253/- inotify_init1:294/26
    inotify_add_watch:254/27 inotify_rm_watch:255/28 fanotify_init:300/262 fanotify_mark:301/263 mknod:133/-
    mknodat:259/33 sync:162/81 syncfs:306/267 sync_file_range:277/84
"""

# One test: args[n] & mask is one of the values. A rule allows the call if all tests of one of its lists hold.
Test = tuple[int, int, tuple[int, ...]]
Rule = list[list[Test]]

PID = -1  # stands for the process's own id until filter_program fills it in
EVERY_BIT = 0xFFFFFFFF


def _low(n: int) -> int:
    """Where seccomp_data holds the low half of args[n]; alone it is what the kernel reads of an int argument."""
    return 16 + 8 * n


def _null(n: int) -> list[Test]:
    """args[n] is the null pointer, in both halves."""
    return [(_low(n), EVERY_BIT, (0,)), (_low(n) + 4, EVERY_BIT, (0,))]


def _one_of(n: int, *values: int) -> Test:
    return (_low(n), EVERY_BIT, values)


def _only_bits(n: int, allowed: int, required: int = 0) -> Test:
    """args[n] has every required bit, and beyond them none but the allowed."""
    return (_low(n), EVERY_BIT ^ allowed, (required,))


def _no_bits(n: int, denied: int) -> Test:
    return (_low(n), denied, (0,))


MSG_OOB = 0x1  # out-of-band data signals the owner, and its code in AF_UNIX has been a way into the kernel
O_ASYNC = 0x2000  # a terminal, once asynchronous, signals its whole foreground group
RLIMIT_STACK = 3
# CLONE_VM, SIGHAND, THREAD make a thread; FS, FILES, SYSVSEM, SETTLS, PARENT_SETTID, CHILD_CLEARTID, DETACHED may join
THREAD, THREAD_MAY = 0x10900, 0x7C0600
FORK, FORK_MAY = 17, 0x1200000  # SIGCHLD; CHILD_CLEARTID, CHILD_SETTID

# Every argument here but prlimit64's pointer is an int to the kernel, which drops the high half: the low one decides.
CHECKED: dict[str, Rule] = {
    "fork:57/-": [],
    "clone:56/220": [[_only_bits(0, THREAD_MAY, THREAD)]],
    # 0, -1 and -group name other processes
    "kill:62/129": [[_one_of(0, PID)]],
    "tgkill:234/131": [[_one_of(0, PID)]],
    "tkill:200/130": [[_one_of(0, PID)]],
    # limits may be read; root could raise those set on it, so only the stack's, which deep recursion asks for, is set
    "prlimit64:302/261": [
        [_one_of(0, 0, PID), *_null(2)],
        [_one_of(0, 0, PID), _one_of(1, RLIMIT_STACK)],
    ],
    "setrlimit:160/164": [[_one_of(0, RLIMIT_STACK)]],
    # F_DUPFD, GETFD, SETFD, GETFL, GETLK, SETLK, SETLKW, OFD locks, DUPFD_CLOEXEC, GETPIPE_SZ; F_SETFL with no O_ASYNC.
    # Not F_SETOWN, F_SETOWN_EX, F_SETSIG, F_NOTIFY, F_SETLEASE: signals to others. Not F_SETPIPE_SZ: kernel memory
    "fcntl:72/25": [
        [_one_of(1, 0, 1, 2, 3, 5, 6, 7, 36, 37, 38, 1030, 1032)],
        [_one_of(1, 4), _no_bits(2, O_ASYNC)],
    ],
    # TCGETS, TCGETS2 (isatty), TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
    "ioctl:16/29": [[_one_of(1, 0x5401, 0x802C542A, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)]],
    # PR_SET_NAME, PR_GET_NAME, PR_SET_VMA (glibc names its arenas)
    "prctl:157/167": [[_one_of(0, 15, 16, 0x53564D41)]],
    # AF_UNIX, SOCK_STREAM with SOCK_CLOEXEC, SOCK_NONBLOCK: a connected stream takes no address, as a datagram would
    "socketpair:53/199": [[_one_of(0, 1), _only_bits(1, 0x80800, 1)]],
    # SOL_SOCKET: SO_REUSEADDR, KEEPALIVE, LINGER, RCVTIMEO, SNDTIMEO; not ATTACH_FILTER, nor SNDBUF, which is memory
    "setsockopt:54/208": [[_one_of(1, 1), _one_of(2, 2, 9, 13, 20, 21)]],
    "sendto:44/206": [[_no_bits(3, MSG_OOB)]],
    "recvfrom:45/207": [[_no_bits(3, MSG_OOB)]],
    "recvmsg:47/212": [[_no_bits(2, MSG_OOB)]],
    # not MADV_HWPOISON and SOFT_OFFLINE (100, 101), by which root takes memory from the machine, nor MERGEABLE
    "madvise:28/233": [[_one_of(2, 0, 1, 2, 3, 4, 8, 9, 10, 11, *range(14, 26), 102, 103)]],
}
FORK_ALLOWED: dict[str, Rule] = {
    "fork:57/-": [[]],
    "clone:56/220": [*CHECKED["clone:56/220"], [_only_bits(0, FORK_MAY, FORK)]],
}


class Architecture(NamedTuple):
    column: int  # in the tables of numbers
    audit: int  # AUDIT_ARCH_*, the word by which the kernel tells the filter whose numbers it sees


ARCHITECTURES = {"x86_64": Architecture(0, 0xC000003E), "aarch64": Architecture(1, 0xC00000B7)}
ARCHITECTURE = ARCHITECTURES.get(platform.machine()) if sys.platform == "linux" and sys.maxsize > 2**32 else None


def numbers(calls: str, architecture: Architecture) -> dict[str, int]:
    """{name: number} of one table's calls, less those that the machine lacks."""
    lines = [line for line in calls.splitlines() if not line.strip().startswith("#")]
    named = [call.split(":") for call in " ".join(lines).split()]
    columns = {name: pair.split("/")[architecture.column] for name, pair in named}
    return {name: int(number) for name, number in columns.items() if number != "-"}


# The assembler: an instruction is (code, jump if true, jump if false, constant), and a jump counts what it steps over.
Instruction = tuple[int, int, int, int]
# BPF_LD|W|ABS, ALU|AND|K, JMP|JA, JMP|JEQ|K, JMP|JGE|K, RET|K
LOAD, AND, JUMP, EQUAL, AT_LEAST, RETURN = 0x20, 0x54, 0x05, 0x15, 0x35, 0x06
ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000  # SECCOMP_RET_ALLOW, KILL_PROCESS, ERRNO
NUMBER_AT, AUDIT_AT = 0, 4  # in seccomp_data


def _return(action: int) -> list[Instruction]:
    return [(RETURN, 0, 0, action)]


def _when(value: int, then: list[Instruction]) -> list[Instruction]:
    """If the word in hand is the value, then, which must end in a return."""
    return [(EQUAL, 0, len(then), value), *then]


def _rule(rule: Rule) -> list[Instruction]:
    code: list[Instruction] = []
    for tests in rule:
        passed = _return(ALLOW)
        for offset, mask, values in reversed(tests):
            # any match steps over the matches left and the jump after them, which leads to the rule's next list
            matches = [(EQUAL, len(values) - i, 0, value) for i, value in enumerate(values)]
            passed = [(LOAD, 0, 0, offset), (AND, 0, 0, mask), *matches, (JUMP, 0, 0, len(passed)), *passed]
        code += passed
    return code + _return(ERRNO | errno.EPERM)


def _runs(architecture: Architecture) -> list[tuple[int, int]]:
    """(the first number beyond it, action) of each run of numbers that are answered alike; CHECKED are none of these.

    The kernel checks and compiles a filter for every program: by runs it is a third as long as number by number."""
    tables = ((ALLOWED, ALLOW), (PRETENDED, ERRNO), (DENIED, ERRNO | errno.EPERM))
    actions = {number: action for calls, action in tables for number in numbers(calls, architecture).values()}
    checked = {number for call in CHECKED for number in numbers(call, architecture).values()}
    runs: list[tuple[int, int]] = []
    for number in range(max(actions) + 1):
        action = actions.get(number, ERRNO | errno.ENOSYS)
        if runs and (number in checked or runs[-1][1] == action):
            action = runs.pop()[1]
        runs.append((number + 1, action))
    return runs


def _search(runs: list[tuple[int, int]]) -> list[Instruction]:
    """Answer as the run that the number in hand lies in, one jump a run into the returns behind them all."""
    actions = sorted({action for _, action in runs})
    jumps = [(AT_LEAST, 0, len(runs) - i + actions.index(action), beyond) for i, (beyond, action) in enumerate(runs)]
    assert len(jumps) + len(actions) < 256  # what a jump can step over
    return [*jumps, *_return(ERRNO | errno.ENOSYS), *(word for action in actions for word in _return(action))]


def template(architecture: Architecture, allow_fork: bool) -> tuple[bytes, list[int]]:
    """The packed sock_filter array with zeros for the process's id, and the offsets of those zeros."""
    code = [(LOAD, 0, 0, AUDIT_AT), (EQUAL, 1, 0, architecture.audit), *_return(KILL), (LOAD, 0, 0, NUMBER_AT)]
    for call, rule in (CHECKED | FORK_ALLOWED if allow_fork else CHECKED).items():
        for number in numbers(call, architecture).values():
            code += _when(number, _rule(rule))
    code += _search(_runs(architecture))
    holes = [8 * i + 4 for i, (*_, constant) in enumerate(code) if constant == PID]
    return b"".join(struct.pack("=HBBI", *jump, max(constant, 0)) for *jump, constant in code), holes


# Built once: a program's filter is then a copy and a handful of patched words.
_TEMPLATES = {fork: template(ARCHITECTURE, fork) for fork in (False, True)} if ARCHITECTURE else {}
_LIBC = ctypes.CDLL(None, use_errno=True)
_SYSCALL = numbers(DENIED, ARCHITECTURE)["seccomp"] if ARCHITECTURE else -1
SET_MODE_FILTER, GET_ACTION_AVAIL, PR_SET_NO_NEW_PRIVS = 1, 2, 38


def _seccomp(operation: int, argument: bytes) -> None:
    if _LIBC.syscall(ctypes.c_long(_SYSCALL), ctypes.c_ulong(operation), ctypes.c_ulong(0), argument) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"seccomp: {os.strerror(code)}")


def supported() -> bool:
    """Whether this machine and kernel can hold a program to the filter."""
    try:
        _seccomp(GET_ACTION_AVAIL, struct.pack("=I", KILL))
    except OSError:
        return False
    return ARCHITECTURE is not None


def filter_program(pid: int, allow_fork: bool = False) -> bytes:
    """The filter, packed for install, of the process with this id as the process itself sees it.

    With allow_fork it may fork, but not exec; its descendants bear its filter, and so cannot signal even themselves.
    Raises ValueError for an id that does not name one process, OSError (ENOSYS) on a machine without tables.
    """
    if pid <= 0:
        raise ValueError(f"pid={pid} names no single process; pass os.getpid()")
    if ARCHITECTURE is None:
        raise OSError(errno.ENOSYS, f"no table of system calls for {platform.machine()}; see seccomp.supported()")
    code, holes = _TEMPLATES[allow_fork]
    program = bytearray(code)
    for hole in holes:
        struct.pack_into("=I", program, hole, pid)
    return bytes(program)


def no_new_privs() -> None:
    """Give up, for good, what set-uid files would grant. An ordinary user must, before install or landlock.restrict."""
    one, zero = ctypes.c_ulong(1), ctypes.c_ulong(0)
    if _LIBC.prctl(PR_SET_NO_NEW_PRIVS, one, zero, zero, zero) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl(PR_SET_NO_NEW_PRIVS): {os.strerror(code)}")


def install(program: bytes) -> None:
    """Bind this thread, and all it starts, to a filter_program, for good.

    Raises OSError: EACCES for an ordinary user who has kept new privileges.
    """
    instructions = bytearray(program)
    address = ctypes.addressof(ctypes.c_char.from_buffer(instructions))
    _seccomp(SET_MODE_FILTER, struct.pack("HP", len(program) // 8, address))
