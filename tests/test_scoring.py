"""Scorer: what becomes of verifiers that raise, hang, die, print, fork or return nonsense, and of their processes."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from grpo_math.config import Reward, Sandbox, Scoring
from grpo_math.scoring import Durations, Scorer, ScoringError
from grpo_math.scoring_pool import Worker
from grpo_math.types import Completion, Problem, UserError

HEAD = "import ctypes, os, re, resource, subprocess, sys, time\nfrom grpo_math.types import RunAlone, Verdict\n\n"


@pytest.fixture
def make(tmp_path):
    """Write a verifier whose body of `verify(problem, completion, ...)` is `body`, and what stands below it in its
    file; returns its name, a path."""

    def write(body, arguments="", name="custom", below=""):
        lines = "\n".join("    " + line for line in body.strip().split("\n"))
        path = tmp_path / f"{name}.py"
        path.write_text(f"{HEAD}def verify(problem, completion{arguments}):\n{lines}\n\n{below}\n")
        return str(path)

    return write


def items(*texts, **metadata):
    problem = Problem("p", "t", "", "1", metadata)
    return [(problem, Completion((), (), text, "stop", 0)) for text in texts]


def verdicts(name, *texts, workers=1, timeout_s=5.0, options=None, **metadata):
    reward = Reward(verifier=name, options=options or {})
    with Scorer([reward], Scoring(workers=workers, timeout_s=timeout_s, max_error_share=1.0)) as scorer:
        return [s.verdict for s in scorer.score(items(*texts, **metadata))]


def gone(pid):
    """Whether the process has ended, within a second."""
    for _ in range(50):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.02)
    return False


def test_order_is_kept_and_copies_are_judged_once(make, tmp_path):
    name = make(f'open({str(tmp_path / "calls")!r}, "a").write(".")\nreturn Verdict(float(completion), "correct")')
    texts = [str(i % 50) for i in range(500)]
    seen = []
    with Scorer([Reward(verifier=name)], Scoring(workers=3)) as scorer:
        scored = scorer.score(items(*texts), progress=seen.append)
        assert scorer.score([]) == []
    assert [s.reward for s in scored] == [float(text) for text in texts]
    assert len((tmp_path / "calls").read_text()) == 50
    assert seen == list(range(10, 501, 10))


def test_the_same_text_for_another_problem_is_judged_again(make):
    name = make('return Verdict(float(problem.answer), "correct")')
    with Scorer([Reward(verifier=name)], Scoring(workers=1)) as scorer:
        pairs = [(Problem(f"p{i}", "t", "", str(i)), Completion((), (), "same", "stop", 0)) for i in range(5)]
        assert [s.reward for s in scorer.score(pairs)] == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_an_exception_is_an_error_with_its_place(make):
    name = make("return {}[completion]")
    (verdict,) = verdicts(name, "key")
    assert (verdict.reward, verdict.reason) == (None, "error")
    assert verdict.detail == f"{name}: KeyError: 'key' ({name}:5)"


def test_an_exception_inside_a_library_names_the_line_of_the_verifier(make):
    name = make("import json\nreturn json.loads(completion)")
    (verdict,) = verdicts(name, "{")
    assert f"({name}:6)" in verdict.detail


@pytest.mark.parametrize(
    ("returned", "complaint"),
    [
        ("None", "returned NoneType None, not a Verdict"),
        ("1.0", "returned float 1.0, not a Verdict"),
        ('Verdict(True, "correct")', "the reward bool True"),
        ('Verdict("1", "correct")', "the reward str '1'"),
        ('Verdict(float("nan"), "correct")', "the reward float nan"),
        ('Verdict(float("inf"), "correct")', "the reward float inf"),
        ('Verdict(1.0, "right")', "the reason str 'right'; known: correct, wrong"),
        ('Verdict(None, "wrong")', "no reward with the reason 'wrong'"),
        ('Verdict(0.0, "error")', "the reward 0.0 with the reason 'error'"),
        ('Verdict(1.0, "correct", None)', "a detail or answer that is not a string"),
        ('Verdict(1.0, "correct", "", 5)', "a detail or answer that is not a string"),
        ('Verdict(1.0, "correct", step_rewards=((3, 1.0), (1, 0.0)))', "rising character offsets"),
        ('Verdict(1.0, "correct", step_rewards=((3, float("nan")),))', "not a finite float"),
        (
            'Verdict(1.0, "correct", step_rewards=((1, 0.0), (9, 1.0)))',
            "ends list [1, 9], and the text has 3 characters",
        ),
        ('Verdict(1.0, "correct", step_rewards=((0, 1.0),))', "ends list [0], and the text has 3 characters"),
        ('Verdict(1.0, "correct", step_rewards=1.0)', "return ((end, reward), ...)"),
        ('Verdict(1.0, "correct", tests=["passed"])', "the tests list ['passed']; return a tuple of strings"),
        ('Verdict(1.0, "correct", tests=("passed", 1))', "return a tuple of strings, or None"),
        ("sys.exit(3)", "SystemExit: 3"),
        ("(lambda: 0)", "not a Verdict"),
    ],
)
def test_nonsense_is_an_error(make, returned, complaint):
    name = make(f'return {returned} if completion == "bad" else Verdict(1, "correct", step_rewards=((1, 0.5),))')
    bad, good = verdicts(name, "bad", "good")
    assert (bad.reward, bad.reason) == (None, "error")
    assert complaint in bad.detail
    assert name in bad.detail
    assert (good.reward, good.step_rewards) == (1.0, ((1, 0.5),))
    assert type(good.reward) is float


@pytest.mark.parametrize(
    ("body", "end"),
    [
        ("os._exit(3)", "exited with code 3"),
        ("ctypes.string_at(0)", "was killed by SIGSEGV"),
        ("os.kill(os.getpid(), 9)", "was killed by SIGKILL"),
    ],
)
def test_a_worker_that_dies_costs_its_own_score_alone(make, body, end):
    name = make(f'if completion == "die":\n    {body}\nreturn Verdict(1.0, "correct")')
    texts = [f"{i}" for i in range(20)]
    texts[7] = "die"
    result = verdicts(name, *texts, workers=2)
    assert (result[7].reward, result[7].reason, result[7].detail) == (None, "error", f"{name}: its process {end}")
    assert all(v.reward == 1.0 for i, v in enumerate(result) if i != 7)


def test_what_a_dying_worker_said_before_still_counts(make):
    name = make('if completion.endswith("77"):\n    os._exit(0)\nreturn Verdict(float(completion), "correct")')
    result = verdicts(name, *map(str, range(2000)), workers=2)
    assert [v.reward for v in result] == [None if i % 100 == 77 else float(i) for i in range(2000)]


@pytest.mark.parametrize(
    "body",
    ["while True: pass", "time.sleep(1000)", 're.match(r"(a+)+$", "a" * 64 + "b")', "sys.stdin.read(); time.sleep(99)"],
)
def test_a_verifier_that_hangs_is_killed_even_inside_c(make, body):
    name = make(f'if completion == "hang":\n    {body}\nreturn Verdict(1.0, "correct")')
    start = time.monotonic()
    result = verdicts(name, "a", "hang", "b", timeout_s=0.5)
    assert [v.reason for v in result] == ["correct", "timeout", "correct"]
    assert result[1].detail == f"{name}: no verdict within 0.5 s; its process was killed"
    assert time.monotonic() - start < 5


def test_the_deadline_is_of_each_item_not_of_all(make):
    name = make('time.sleep(0.2)\nreturn Verdict(1.0, "correct")')
    assert all(v.reward == 1.0 for v in verdicts(name, *map(str, range(8)), timeout_s=0.6))


def test_a_slow_import_is_not_counted(make):
    name = make('return Verdict(1.0, "correct")')
    path = Path(name)
    path.write_text("import time; time.sleep(0.8)\n" + path.read_text())
    assert verdicts(name, "a", timeout_s=0.5)[0].reward == 1.0


def test_children_of_a_killed_verifier_die_with_it(make, tmp_path):
    name = make(
        'child = subprocess.Popen(["sleep", "100"])\n'
        'open(problem.metadata["out"], "w").write(str(child.pid))\n'
        "child.wait()"
    )
    assert verdicts(name, "a", timeout_s=0.5, out=str(tmp_path / "child"))[0].reason == "timeout"
    assert gone((tmp_path / "child").read_text())


def test_what_a_verifier_prints_and_reads_stays_out_of_the_protocol(make, capfd):
    name = make(
        'print("x" * 100_000)\nos.write(1, b"\\x00" * 1000)\nsubprocess.run(["echo", "hi"])\n'
        'assert sys.stdin.read() == ""\nreturn Verdict(1.0, "correct")'
    )
    assert all(v.reward == 1.0 for v in verdicts(name, "a", "b", "c"))
    assert capfd.readouterr().out == ""


def test_workers_never_import_torch_nor_the_main_script(make):
    name = make(
        'main = sys.modules["__main__"].__dict__\n'
        'return Verdict(float("torch" in sys.modules), "wrong", main.get("__file__", "no file"))'
    )
    (verdict,) = verdicts(name, "a")
    assert (verdict.reward, verdict.detail) == (0.0, "no file")


def test_options_reach_the_verifier(make):
    name = make('return Verdict(scale, "correct")', arguments=", *, scale=1.0")
    assert verdicts(name, "a", options={"scale": 0.25})[0].reward == 0.25
    with pytest.raises(UserError, match=r"scal.*it takes scale"):
        Scorer([Reward(verifier=name, options={"scal": 2})], Scoring())
    with pytest.raises(UserError, match="it takes no options"):
        Scorer([Reward(verifier="format", options={"strict": True})], Scoring())
    with pytest.raises(UserError, match="mathh"):
        Scorer([Reward(verifier="mathh")], Scoring())


def test_one_part_without_a_score_leaves_no_reward(make):
    rewards = [Reward(verifier="format"), Reward(verifier=make("raise ValueError"), weight=0.1)]
    with Scorer(rewards, Scoring(workers=1, max_error_share=1.0)) as scorer:
        (scored,) = scorer.score(items("\\boxed{1}"))
    assert scored.reward is None
    assert scored.verdict.reward == 1.0
    assert [v.reason for v in scored.parts.values()] == ["correct", "error"]


def broken_for(make, failing, total, share):
    name = make('if completion.startswith("bad"):\n    raise ValueError(completion)\nreturn Verdict(1.0, "correct")')
    texts = [f"bad {i}" for i in range(failing)] + [f"good {i}" for i in range(total - failing)]
    with Scorer([Reward(verifier=name)], Scoring(workers=2, max_error_share=share)) as scorer:
        return scorer.score(items(*texts))


def test_too_many_errors_stop_the_run_and_keep_the_scores(make):
    with pytest.raises(
        ScoringError, match=r"custom.py failed on 5 of 20 completions \(25%, .*max_error_share=0.2"
    ) as caught:
        broken_for(make, 5, 20, 0.2)
    assert [s.reward for s in caught.value.scored] == [None] * 5 + [1.0] * 15
    assert "5 error" in str(caught.value)
    assert "ValueError: bad 0" in str(caught.value)


@pytest.mark.parametrize(
    ("failing", "total", "share"), [(4, 20, 0.2), (2, 4, 0.2), (1, 2, 0.2), (20, 20, 1.0), (0, 5, 0.0)]
)
def test_few_errors_do_not(make, failing, total, share):
    assert sum(s.reward is None for s in broken_for(make, failing, total, share)) == failing


@pytest.mark.parametrize(("failing", "total", "share"), [(3, 100, 0.0), (3, 4, 0.2), (2, 2, 0.2), (1, 1, 0.2)])
def test_all_of_few_or_several_above_the_share_do(make, failing, total, share):
    with pytest.raises(ScoringError):
        broken_for(make, failing, total, share)


def test_an_interrupted_call_leaves_nothing_for_the_next(make):
    name = make(
        'open(problem.metadata["out"], "a").write(f"{os.getpid()}\\n")\nreturn Verdict(float(completion), "correct")'
    )
    out = Path(name).parent / "pids"

    def interrupt(done):
        raise KeyboardInterrupt

    with Scorer([Reward(verifier=name)], Scoring(workers=2)) as scorer:
        with pytest.raises(KeyboardInterrupt):
            scorer.score(items(*map(str, range(1000)), out=str(out)), progress=interrupt)
        assert all(gone(pid) for pid in out.read_text().split())
        assert [s.reward for s in scorer.score(items("7", "8", out=str(out)))] == [7.0, 8.0]


def test_a_worker_killed_between_two_calls_is_replaced(make):
    name = make('return Verdict(1.0, "correct", str(os.getpid()))')
    with Scorer([Reward(verifier=name)], Scoring(workers=1)) as scorer:
        first = int(scorer.score(items("a"))[0].verdict.detail)
        os.kill(first, signal.SIGKILL)
        assert gone(first)
        second = scorer.score(items("a"))[0].verdict
    assert second.reward == 1.0
    assert int(second.detail) != first


def test_workers_are_reused_and_close_ends_them(make):
    name = make('return Verdict(1.0, "correct", str(os.getpid()))')
    with Scorer([Reward(verifier=name)], Scoring(workers=1)) as scorer:
        pids = {int(scorer.score(items(str(i)))[0].verdict.detail) for i in range(3)}
    assert len(pids) == 1
    assert gone(pids.pop())


def test_a_verifier_that_cannot_be_loaded_by_a_worker_is_said_so(make):
    name = make('return Verdict(1.0, "correct")')
    with Scorer([Reward(verifier=name)], Scoring(workers=1)) as scorer:
        Path(name).write_text("import nothing_of_this_name")
        with pytest.raises(UserError, match="nothing_of_this_name"):
            scorer.score(items("a"))


def test_a_worker_that_dies_while_loading_is_given_up(make):
    name = make('return Verdict(1.0, "correct")')
    with Scorer([Reward(verifier=name)], Scoring(workers=1)) as scorer:
        Path(name).write_text("import os; os._exit(7)")
        with pytest.raises(RuntimeError, match="exited with code 7, 3 times in a row"):
            scorer.score(items("a"))


PARENT = """
from grpo_math.config import Reward, Scoring
from grpo_math.scoring import Scorer
from grpo_math.types import Completion, Problem
problem = Problem("p", "t", "", "1", {{"out": {out!r}}})
scorer = Scorer([Reward(verifier={name!r})], Scoring(workers=3, timeout_s=100))
print(scorer.score([(problem, Completion((), (), text, "stop", 0)) for text in {texts!r}])[0].reward)
"""  # a main script without a guard


@pytest.mark.parametrize("body", ["while True: pass", 're.match(r"(a+)+$", "a" * 64 + "b")'])
def test_kill_9_of_the_parent_leaves_nothing_behind(make, tmp_path, body):
    out = tmp_path / "pids"
    name = make(
        'child = subprocess.Popen(["sleep", "100"])\n'
        f'open(problem.metadata["out"], "a").write(f"{{os.getpid()}} {{child.pid}}\\n")\n{body}'
    )
    script = tmp_path / "main.py"
    script.write_text(PARENT.format(name=name, out=str(out), texts=["a", "b", "c"]))
    parent = subprocess.Popen([sys.executable, str(script)], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    for _ in range(500):
        if out.exists() and len(out.read_text().splitlines()) == 3:
            break
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    pids = out.read_text().split()
    assert len(pids) == 6
    assert all(gone(pid) for pid in pids)


def test_a_main_script_without_a_guard_works(make, tmp_path):
    name = make('return Verdict(0.5, "wrong")')
    script = tmp_path / "main.py"
    script.write_text(PARENT.format(name=name, out="", texts=["a"]))
    done = subprocess.run(
        [sys.executable, str(script)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("0.5\n", "")


def test_ctrl_c_reaches_the_parent_alone(make, tmp_path):
    out = tmp_path / "pids"
    name = make('open(problem.metadata["out"], "a").write(f"{os.getpid()}\\n")\ntime.sleep(100)')
    script = tmp_path / "main.py"
    # a shell starts what it puts in the background with SIGINT ignored, and CI may have done so with us
    heed = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    script.write_text(heed + PARENT.format(name=name, out=str(out), texts=["a", "b"]))
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for _ in range(500):
        if out.exists() and len(out.read_text().splitlines()) == 2:
            break
        time.sleep(0.02)
    os.killpg(parent.pid, signal.SIGINT)
    _, errors = parent.communicate(timeout=10)
    assert errors.count("Traceback") == 1
    assert "KeyboardInterrupt" in errors
    assert all(gone(pid) for pid in out.read_text().split())


def test_a_deadline_counts_from_the_end_of_the_item_before(make):
    """Two items of 0.6 s in one chunk are both within a second each."""
    name = make('time.sleep(0.6 if completion == "slow" else 0)\nreturn Verdict(1.0, "correct")')
    texts = [f"quick {n}" for n in range(8)] + ["slow", "slow "]  # quick ones first: the chunks grow
    assert [v.reason for v in verdicts(name, *texts, timeout_s=1.0)] == ["correct"] * 10


def test_memory_beyond_the_limit_is_an_error_and_the_next_item_is_judged(make):
    name = make('block = b"x" * (int(completion) << 20)\nreturn Verdict(float(len(block) > 0), "correct")')
    scoring = Scoring(workers=1, memory_mb=500, max_error_share=1.0)
    with Scorer([Reward(verifier=name)], scoring) as scorer:
        few, much, again = scorer.score(items("1", "4000", "2"))
    assert (few.reward, again.reward) == (1.0, 1.0)
    assert much.verdict.reason == "error"
    assert "MemoryError" in much.verdict.detail


def test_a_worker_is_replaced_after_many_items(make, monkeypatch):
    monkeypatch.setattr("grpo_math.scoring_pool.RECYCLE", 10)
    name = make('return Verdict(float(os.getpid()), "correct")')
    with Scorer([Reward(verifier=name)], Scoring(workers=1)) as scorer:
        pids = [scorer.score(items(*(f"{call} {n}" for n in range(6))))[0].reward for call in range(6)]
    assert 2 <= len(set(pids)) <= 4


def test_warm_up_runs_before_the_first_item_and_its_time_is_not_counted(make):
    name = make('return Verdict(float(WARM), "correct")')
    path = Path(name)
    path.write_text(
        path.read_text() + "\nWARM = 0\ndef warm_up():\n    global WARM\n    time.sleep(0.5)\n    WARM = 1\n"
    )
    assert [v.reward for v in verdicts(name, "a", timeout_s=0.3)] == [1.0]


def test_unknown_has_no_reward_and_is_no_failure(make):
    name = make('return Verdict(None, "unknown", "too large")')
    with Scorer([Reward(verifier=name)], Scoring(workers=1, max_error_share=0.0)) as scorer:
        scored = scorer.score(items("a", "b", "c", "d", "e"))
    assert {(s.reward, s.verdict.reason) for s in scored} == {(None, "unknown")}


def test_options_that_check_options_refuses_are_named_before_a_worker_starts():
    with pytest.raises(UserError, match="percent=both"):
        Scorer([Reward(verifier="math", options={"percent": "both"})], Scoring())


def test_the_outcome_of_each_test_reaches_the_caller(make):
    name = make('return Verdict(0.5, "crashed", tests=("passed", "IndexError"))')
    (verdict,) = verdicts(name, "a")
    assert (verdict.reward, verdict.reason, verdict.tests) == (0.5, "crashed", ("passed", "IndexError"))


def test_a_program_that_took_too_long_is_no_failure_of_the_verifier(make):
    name = make('return Verdict(None if completion == "mine" else 0.0, "timeout")')
    with Scorer([Reward(verifier=name)], Scoring(workers=1, max_error_share=0.0)) as scorer:
        scored = scorer.score(items("a", "b", "c", "d", "e"))
        with pytest.raises(ScoringError, match=r"failed on 1 of 1 completions .* 1 timeout"):
            scorer.score(items("mine"))
    assert {(s.reward, s.verdict.reason, s.verdict.failed) for s in scored} == {(0.0, "timeout", False)}


# The limits of programs


def test_a_verifier_with_a_parameter_sandbox_gets_the_limits(make):
    name = make('return Verdict(float(sandbox.memory_mb), "wrong", sandbox.require)', arguments=", *, sandbox=None")
    with Scorer([Reward(verifier=name)], Scoring(workers=1), Sandbox(memory_mb=77, require="process")) as scorer:
        verdict = scorer.score(items("a"))[0].verdict
    assert (verdict.reward, verdict.detail) == (77.0, "process")
    assert verdicts(name, "a")[0].reward == Sandbox().memory_mb


def test_the_option_sandbox_is_not_the_user_s_to_set(make):
    name = make("pass", arguments=", *, reward='all', sandbox=None")
    with pytest.raises(UserError, match=r"sandbox=5 among its options.*set sandbox.timeout_s"):
        Scorer([Reward(verifier=name, options={"sandbox": 5})], Scoring())
    with pytest.raises(UserError, match=r"rewards: verifier .*it takes reward$"):
        Scorer([Reward(verifier=name, options={"rewad": "all"})], Scoring())


def test_a_verifier_may_lift_the_memory_limit_for_what_it_starts(make):
    name = make(
        'soft, hard = resource.getrlimit(resource.RLIMIT_AS)\nreturn Verdict(float(soft >> 20), "correct", str(hard))'
    )
    with Scorer([Reward(verifier=name)], Scoring(workers=1, memory_mb=600)) as scorer:
        verdict = scorer.score(items("a"))[0].verdict
    assert (verdict.reward, verdict.detail) == (600.0, str(resource.getrlimit(resource.RLIMIT_AS)[1]))


def test_shut_down_runs_in_a_worker_that_ends_in_an_orderly_way(make, tmp_path):
    out = tmp_path / "out"
    name = make("pass", below=f"def shut_down():\n    open({str(out)!r}, 'w').write('shut down')")
    worker = Worker([Reward(verifier=name)], os.getcwd(), 4096)
    worker.stdin.close()
    assert worker.process.wait(timeout=60) == 0
    worker.kill()
    assert out.read_text() == "shut down"


# Deadlines and turns


def problems(**metadata_of):
    """A problem of each name, with an item for each."""
    return [
        (Problem(name, "t", "", "1", {"value": value}), Completion((), (), name, "stop", 0))
        for name, value in metadata_of.items()
    ]


PATIENCE = """
def patience(problem, factor=1):
    return factor * problem.metadata["value"]
"""


def test_the_patience_of_a_verifier_counts_instead_of_the_time_limit(make):
    body = 'time.sleep(100 if completion == "hang" else 0.6)\nreturn Verdict(1.0, "correct")'
    name = make(body, arguments=", factor=1", below=PATIENCE)
    reward = Reward(verifier=name, options={"factor": 2})
    with Scorer([reward], Scoring(workers=1, timeout_s=0.1, max_error_share=1.0)) as scorer:
        scored = scorer.score(problems(slow=20, hang=0.2, again=20, broken=None, negative=-1))
    assert [s.verdict.reason for s in scored] == ["correct", "timeout", "correct", "error", "error"]
    assert scored[1].verdict.detail == f"{name}: no verdict within 0.4 s; its process was killed"
    assert f"{name}: patience failed: {name}:" in scored[3].verdict.detail
    assert scored[4].verdict.detail == f"{name}: patience returned -2; return seconds above 0"


def test_what_is_not_judged_when_the_time_of_the_batch_is_up_has_no_score(make, tmp_path):
    name = make(
        f'open({str(tmp_path / "pids")!r}, "a").write(f"{{os.getpid()}}\\n")\n'
        'time.sleep(100 if completion == "hang" else 0)\n'
        'verdict = Verdict(1.0, "correct")\n'
        'if completion == "alone":\n    raise RunAlone(verdict)\nreturn verdict'
    )
    scoring = Scoring(workers=1, timeout_s=100, batch_timeout_s=2.0, max_error_share=1.0)
    with Scorer([Reward(verifier=name)], scoring) as scorer:
        while scorer.score(items("warm up"))[0].reward is None:  # on a busy machine a worker is long in coming
            pass
        seen = []
        scored = scorer.score(items("a", "alone", "hang", "late", "later"), seen.append)
        assert gone((tmp_path / "pids").read_text().split()[-1])
        after = scorer.score(items("b"))
    assert [s.reward for s in scored] == [1.0, None, None, None, None]
    assert {s.verdict.reason for s in scored[1:]} == {"timeout"}
    assert scored[3].verdict.detail.startswith(f"{name}: scoring.batch_timeout_s=2 passed before it was judged; raise")
    assert seen == [1, 2, 3, 4, 5]
    assert after[0].verdict.reason in ("correct", "timeout")


def test_a_verdict_that_may_owe_to_the_load_is_asked_for_again_with_nothing_else_running(make, tmp_path):
    log = tmp_path / "log"
    name = make(
        f"log = open({str(log)!r}, 'a+')\n"
        "began = time.monotonic()\ntime.sleep(0.03)\n"
        "print(completion, began, time.monotonic(), file=log, flush=True)\n"
        "log.seek(0)\n"
        "calls = sum(line.split()[0] == completion for line in log)\n"
        'verdict = Verdict(float(calls), "wrong")\n'
        'if completion.startswith("always") or (completion.startswith("once") and calls == 1):\n'
        "    raise RunAlone(verdict)\n"
        'time.sleep(100 if completion == "dies" and calls == 2 else 0)\n'
        'if completion == "dies":\n    raise RunAlone(verdict)\n'
        "return verdict"
    )
    texts = ["always", "plain1", "once", "plain2", "dies", *(f"plain{n}" for n in range(3, 20)), "always2"]
    seen = []
    with Scorer([Reward(verifier=name)], Scoring(workers=3, timeout_s=2.0)) as scorer:
        scored = scorer.score(items(*texts), seen.append)
    assert [s.reward for s in scored] == [
        {"plain": 1.0, "dies": None}.get(text.rstrip("0123456789"), 2.0) for text in texts
    ]
    assert seen == list(range(1, len(texts) + 1))
    calls = [(text, float(began), float(ended)) for text, began, ended in map(str.split, log.read_text().splitlines())]
    again = [call for number, call in enumerate(calls) if call[0] in {text for text, _, _ in calls[:number]}]
    assert sorted(text for text, _, _ in again) == ["always", "always2", "dies", "once"]
    for call in again:
        assert all(other is call or other[2] <= call[1] or call[2] <= other[1] for other in calls)


def test_the_longest_go_first_and_come_back_in_their_places(make, tmp_path):
    log = tmp_path / "log"
    name = make(
        f"open({str(log)!r}, 'a').write(problem.id + ' ')\n"
        'time.sleep(problem.metadata["value"])\nreturn Verdict(problem.metadata["value"], "correct")'
    )
    with Scorer([Reward(verifier=name)], Scoring(workers=1, timeout_s=60)) as scorer:
        scorer.score(problems(short=0.0, long=1.0, middle=0.4))
        scored = scorer.score(problems(short=0.0, new=0.1, long=1.0, newer=0.2, middle=0.4))
    assert log.read_text().split() == ["short", "long", "middle", "new", "newer", "long", "middle", "short"]
    assert [s.reward for s in scored] == [0.0, 0.1, 1.0, 0.2, 0.4]


def test_durations_are_means_of_the_problems_judged_last(monkeypatch):
    monkeypatch.setattr("grpo_math.scoring.REMEMBERED", 2)
    durations = Durations()
    (a, _), (b, _), (c, _) = problems(a=0, b=0, c=0)
    for problem, seconds in ((a, 1.0), (b, 2.0), (a, 3.0), (c, 4.0), (a, 0.0)):
        durations.add((problem, "", 0), seconds)
    assert [durations.mean((problem, "text", 0)) for problem in (a, b, c)] == [2.0, float("inf"), 4.0]
    assert durations.mean((a, "", 1)) == float("inf")
