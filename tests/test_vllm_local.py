"""vLLM in this process, the real one: it samples what the trainer has, after every update, and leaves no trace."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from grpo_math import config
from grpo_math.backend.torch import TorchBackend
from grpo_math.batch import Batch, pad_rows
from grpo_math.lora import add_lora, engine_weights
from grpo_math.policy import Policy, make_policy
from grpo_math.ranks import Ranks, join
from grpo_math.rollout.shared import SharedEngine
from grpo_math.rollout.vllm_common import kv_cache_bytes, lora_rank, prompt_seed, sampling_fields
from grpo_math.rollout.vllm_local import VLLMEngine, import_vllm
from grpo_math.small_model import character_tokenizer, small_model
from grpo_math.types import Completion, Problem, Prompt, Sampling, UserError
from tests.tiny import prompt, tiny_policy

# vLLM's attention on the CPU takes heads of 32 and more
SPEC = config.NewModel(hidden_size=64, layers=2, heads=2, kv_heads=2, intermediate_size=96, context=128)
ROLLOUT = config.Rollout(engine="vllm", max_rows=128)
PROMPTS = ("1+1=", "a longer prompt: 12*(3+4)=", "x")
TEMPERATURES = (0.5, 1.0, 1.3)
STEPS = 20


def new_policy(seed: int = 0, tied: bool = True, lora: config.LoRA | None = None) -> Policy:
    tokenizer = character_tokenizer()
    model = small_model(SPEC, tokenizer, seed)
    if not tied:
        model.config.tie_word_embeddings = False
        model = type(model)(model.config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():  # far from uniform, biases and norms too
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.15)
    policy = make_policy(model, tokenizer)
    if lora is None:
        return policy
    add_lora(policy.model, lora)
    return replace(policy, lora=lora)


def save(policy: Policy, folder: Path) -> Path:
    policy.model.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
    return folder


def weights(policy: Policy) -> Iterator[tuple[str, torch.Tensor]]:
    return iter(engine_weights(policy.model, policy.lora))


def batch_of(policy: Policy, prompts: list[Prompt], groups: list[list[Completion]]) -> Batch:
    pairs = [(p, c) for p, group in zip(prompts, groups, strict=True) for c in group]
    return pad_rows(pairs, [True] * len(pairs), policy.pad_id)


def gap(policy: Policy, prompts: list[Prompt], groups: list[list[Completion]], temperature: float) -> float:
    """The largest difference between the sampler's and the trainer's log-probabilities, in nats."""
    batch = batch_of(policy, prompts, groups)
    trainer = policy.score(batch, temperature, 64, 10_000)
    return float((trainer - batch.sampler_logprobs)[batch.loss_mask].abs().max())


def follows_training(policy: Policy, engine: VLLMEngine) -> None:
    """The sampler's log-probabilities are the trainer's, after each of the steps and at every temperature."""
    backend = TorchBackend(policy, config.Backend(), config.Optimizer(learning_rate=3e-3), STEPS, 10_000, 1.0)
    prompts = [prompt(policy, text) for text in PROMPTS]
    engine.update_weights(backend.weights(), 0)
    for step in range(1, STEPS + 1):
        for temperature in TEMPERATURES:
            groups = engine.generate(prompts, Sampling(2, 4, temperature, seed=step))
            assert {c.policy_version for group in groups for c in group} == {step - 1}
            assert gap(policy, prompts, groups, temperature) < 1e-4
        batch = batch_of(policy, prompts, groups)
        advantages = torch.randn(len(batch), generator=torch.Generator().manual_seed(step))
        backend.step(
            batch.with_advantages(advantages), lambda logprobs, entropy, part: (-(logprobs * part.advantages).sum(), {})
        )
        assert gap(policy, prompts, groups, TEMPERATURES[-1]) > 1e-3  # the weights moved: a skipped sync would show
        engine.update_weights(backend.weights(), step)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Beside other work, threads that wait for each other cost more than they bring."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="class")
def policy():
    return new_policy()


@pytest.fixture(scope="class")
def engine(policy, tmp_path_factory):
    before = process_state()
    engine = VLLMEngine(policy, tmp_path_factory.mktemp("none"), ROLLOUT, "float32", Ranks())
    assert process_state() == before
    yield engine
    engine.close()
    assert not dist.is_initialized()


@pytest.fixture
def synced(policy, engine):
    engine.update_weights(weights(policy), 7)
    return engine


class TestTied:
    """One engine for all that does not depend on the model."""

    def test_nothing_is_sampled_from_random_weights(self, policy, engine):
        with pytest.raises(RuntimeError, match="no weights yet"):
            engine.generate([prompt(policy, "1+1=")], Sampling(1, 4))

    def test_it_follows_training(self, engine):
        follows_training(new_policy(1), engine)

    def test_it_follows_an_adapter_that_comes_merged(self, engine):
        policy = new_policy(2, lora=config.LoRA(rank=4))
        follows_training(policy, engine)
        moved = [p for name, p in policy.model.named_parameters() if ".lora_B" in name]
        assert all(bool(p.detach().any()) for p in moved)

    def test_a_sync_that_is_skipped_shows(self, policy, synced):
        prompts = [prompt(policy, text) for text in PROMPTS]
        groups = synced.generate(prompts, Sampling(4, 16))
        assert gap(policy, prompts, groups, 1.0) < 1e-4
        assert gap(new_policy(5), prompts, groups, 1.0) > 0.1

    @pytest.mark.parametrize(
        "left_out", ["lm_head.weight", "model.layers.1.self_attn.k_proj.bias", "model.norm.weight"]
    )
    def test_a_tensor_left_out_is_named(self, policy, synced, left_out):
        some = [(name, tensor) for name, tensor in weights(policy) if name != left_out]
        with pytest.raises(RuntimeError, match=f"without 1 of them, {left_out} first"):
            synced.update_weights(some, 8)
        with pytest.raises(RuntimeError, match="failed half-way"):
            synced.generate([prompt(policy, "1+1=")], Sampling(1, 4))

    @pytest.mark.parametrize("count", [1, 4, 9, 20])
    def test_an_update_that_breaks_off_leaves_no_mixture(self, policy, synced, count):
        def broken():
            for number, pair in enumerate(weights(new_policy(9))):
                if number == count:
                    raise OSError("a rank is gone")
                yield pair

        with pytest.raises(OSError, match="a rank is gone"):
            synced.update_weights(broken(), 8)
        with pytest.raises(RuntimeError, match="failed half-way"):
            synced.generate([prompt(policy, "1+1=")], Sampling(1, 4))
        synced.update_weights(weights(policy), 9)
        prompts = [prompt(policy, text) for text in PROMPTS]
        assert gap(policy, prompts, synced.generate(prompts, Sampling(4, 16)), 1.0) < 1e-4

    def test_tensors_may_change_as_soon_as_the_next_is_asked_for(self, policy, synced):
        def fleeting():
            for name, tensor in weights(policy):
                lent = tensor.clone()
                yield name, lent
                lent.fill_(float("nan"))

        synced.update_weights(fleeting(), 8)
        prompts = [prompt(policy, text) for text in PROMPTS]
        assert gap(policy, prompts, synced.generate(prompts, Sampling(4, 16)), 1.0) < 1e-4

    def test_updates_do_not_pile_up_in_memory(self, policy, synced):
        for version in range(5):
            synced.update_weights(weights(policy), version)
        before = resident_kb()
        for version in range(30):
            synced.update_weights(weights(policy), version)
        one_copy = sum(p.numel() * 4 for p in policy.model.parameters()) // 1024
        assert resident_kb() - before < 10 * one_copy

    def test_order_count_version_and_text(self, policy, synced):
        prompts = [prompt(policy, text) for text in reversed(PROMPTS)] * 16  # more than run side by side
        groups = synced.generate(prompts, Sampling(3, 12))
        assert [len(group) for group in groups] == [3] * len(prompts)
        assert gap(policy, prompts, groups, 1.0) < 1e-4  # those of another prompt would be far off
        for c in (c for group in groups for c in group):
            assert c.policy_version == 7
            assert len(c.token_ids) == len(c.logprobs) <= 12
            assert c.text == policy.tokenizer.decode(list(c.token_ids), skip_special_tokens=True)
            stops = [i for i, token in enumerate(c.token_ids) if token in policy.eos_ids]
            assert stops == ([len(c.token_ids) - 1] if c.finish_reason == "stop" else [])
            assert c.finish_reason == "stop" or len(c.token_ids) == 12

    def test_no_prompts_no_completions(self, synced):
        assert synced.generate([], Sampling(3, 12)) == []

    def test_siblings_differ_and_a_seed_fixes_every_token_whatever_is_beside_it(self, policy, synced):
        prompts = [prompt(policy, text, name=f"{text} {i}") for text in PROMPTS for i in range(3)]
        first = synced.generate(prompts, Sampling(4, 12, seed=3))
        assert all(len({c.token_ids for c in group}) == 4 for group in first)
        assert first[0] != first[1]  # another problem with the same text
        assert tokens(synced.generate(prompts, Sampling(4, 12, seed=3))) == tokens(first)
        assert tokens(synced.generate(prompts[4:6], Sampling(4, 12, seed=3))) == tokens(first[4:6])
        assert tokens(synced.generate(prompts, Sampling(4, 12, seed=4))) != tokens(first)

    def test_every_end_of_sequence_token_stops(self, policy, synced):
        policy.model.generation_config.eos_token_id = [1, *range(60, 90)]
        try:
            prompts = [prompt(policy, text) for text in PROMPTS]
            ended = [c for group in synced.generate(prompts, Sampling(16, 40)) for c in group]
        finally:
            policy.model.generation_config.eos_token_id = 1
        last = Counter(c.token_ids[-1] for c in ended if c.finish_reason == "stop")
        assert len(last) > 5
        assert all(token == 1 or 60 <= token < 90 for token in last)
        assert not any(token == 1 or 60 <= token < 90 for c in ended for token in c.token_ids[:-1])

    def test_at_temperature_0_siblings_are_one_and_its_logprobs_those_at_1(self, policy, synced):
        prompts = [prompt(policy, text) for text in PROMPTS]
        groups = synced.generate(prompts, Sampling(3, 12, temperature=0.0))
        assert all(len(group) == 3 and len({c.token_ids for c in group}) == 1 for group in groups)
        assert gap(policy, prompts, groups, 1.0) < 1e-4
        with torch.no_grad():
            best = policy.model(input_ids=torch.tensor([prompts[0].token_ids])).logits[0, -1].argmax()
        assert groups[0][0].token_ids[0] == int(best)

    @pytest.mark.parametrize(("cut", "kept"), [({"top_k": 3}, 3), ({"top_p": 0.02}, 1)])
    def test_top_k_and_top_p_reach_vllm(self, policy, synced, cut, kept):
        (group,) = synced.generate([prompt(policy, "1+1=")], Sampling(64, 1, 1.3, **cut))
        assert len({c.token_ids for c in group}) <= kept

    @pytest.mark.parametrize("temperature", TEMPERATURES)
    def test_samples_are_distributed_as_the_model_says(self, policy, synced, temperature):
        asked = prompt(policy, "1+1=")
        asked_for = [replace(asked, problem=Problem(str(i), "test", "q", "1")) for i in range(16)]
        groups = synced.generate(asked_for, Sampling(128, 1, temperature, seed=11))
        counts = torch.bincount(torch.tensor([c.token_ids[0] for group in groups for c in group]), minlength=258)
        with torch.no_grad():
            logits = policy.model(input_ids=torch.tensor([asked.token_ids])).logits[0, -1]
        expected = (logits / temperature).softmax(-1) * counts.sum()
        often = expected >= 5
        observed = torch.cat([counts[often], counts[~often].sum()[None]]).double()
        expected = torch.cat([expected[often], expected[~often].sum()[None]]).double()
        chi_square, freedom = float(((observed - expected) ** 2 / expected).sum()), len(expected) - 1
        assert freedom > 5
        assert chi_square < freedom + 4 * (2 * freedom) ** 0.5  # four standard deviations

    def test_what_does_not_fit_is_refused_by_name(self, policy, synced):
        with pytest.raises(UserError, match="problem long: its prompt of 100 tokens"):
            synced.generate([prompt(policy, "1"), prompt(policy, "1" * 100, name="long")], Sampling(1, 29))

    def test_a_full_batch_of_long_prompts_has_its_seeds(self, policy, synced):
        """More prompt tokens than one forward pass takes: vLLM's requests with a seed broke there on the CPU."""
        prompts = [prompt(policy, f"{i:100}") for i in range(64)]
        groups = synced.generate(prompts, Sampling(2, 2))
        assert gap(policy, prompts, groups, 1.0) < 1e-4

    def test_generation_leaves_the_processs_random_numbers_alone(self, policy, synced):
        before = process_state()
        synced.generate([prompt(policy, "1+1=")], Sampling(2, 4))
        assert process_state() == before

    def test_sleep_is_nothing_without_a_gpu(self, policy, synced):
        if torch.cuda.is_available():
            pytest.skip("there is a GPU")
        synced.sleep()
        assert synced.generate([prompt(policy, "1+1=")], Sampling(1, 4))


class TestUntied:
    """The second engine of this process."""

    def test_it_follows_training(self, tmp_path):
        policy = new_policy(tied=False)
        policy.model.generation_config.temperature = 0.2  # none of this may reach vLLM
        engine = VLLMEngine(policy, tmp_path, ROLLOUT, "float32", Ranks())
        try:
            follows_training(policy, engine)
            self.breaks_off(policy, engine)
        finally:
            engine.close()
        engine.close()  # once more is no harm
        with pytest.raises(RuntimeError, match="is closed"):
            engine.generate([], Sampling(1, 1))

    def breaks_off(self, policy, engine):
        """What was asked before an interruption must not come with the next answers, nor from other weights."""

        def interrupt(*_):
            raise InterruptedError("now")

        before = signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        try:
            with pytest.raises(InterruptedError, match="now"):
                engine.generate([prompt(policy, text) for text in PROMPTS] * 50, Sampling(4, 100))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        for again in (
            lambda: engine.generate([prompt(policy, "1+1=")], Sampling(1, 4)),
            lambda: engine.update_weights(weights(policy), 99),  # nor does an update mend it
            lambda: engine.generate([prompt(policy, "1+1=")], Sampling(1, 4)),
        ):
            with pytest.raises(RuntimeError, match="broke off while it sampled"):
                again()


class TestAdapter:
    def test_it_follows_an_adapter_that_comes_alone(self, tmp_path):
        lora = config.LoRA(rank=4, alpha=12.0, sync="adapter")
        folder = save(new_policy(3), tmp_path)
        policy = new_policy(3, lora=lora)
        engine = VLLMEngine(policy, folder, ROLLOUT, "float32", Ranks())
        try:
            assert {name for name, _ in weights(policy)} == engine._expected
            follows_training(policy, engine)
            prompts = [prompt(policy, text) for text in PROMPTS]
            assert gap(policy, prompts, engine.generate(prompts, Sampling(8, 16)), 1.0) < 1e-5
            some = [(name, tensor) for name, tensor in weights(policy) if not name.endswith("q_proj.lora_B.weight")]
            with pytest.raises(
                RuntimeError, match=r"without 2 of them, .*layers.0.self_attn.q_proj.lora_B.weight first"
            ):
                engine.update_weights(some, 99)
            with pytest.raises(RuntimeError, match="failed half-way"):
                engine.generate(prompts, Sampling(1, 4))
            engine.update_weights(weights(policy), 100)
            assert gap(policy, prompts, engine.generate(prompts, Sampling(1, 4)), 1.0) < 1e-5
            assert len(list(Path(engine._scratch.name).iterdir())) == 1
        finally:
            engine.close()


@pytest.mark.gpu
def test_sleep_gives_the_memory_back(tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    policy = new_policy()
    engine = VLLMEngine(policy, tmp_path, ROLLOUT, "float32", Ranks())
    try:
        engine.update_weights(weights(policy), 1)
        prompts = [prompt(policy, text) for text in PROMPTS]
        before = tokens(engine.generate(prompts, Sampling(4, 16)))
        awake = torch.cuda.mem_get_info()[0]
        engine.sleep()
        engine.sleep()  # twice is once
        assert torch.cuda.mem_get_info()[0] - awake > 1 << 30
        with pytest.raises(RuntimeError, match="dropped its weights"):
            engine.generate(prompts, Sampling(4, 16))
        engine.update_weights(weights(policy), 2)
        groups = engine.generate(prompts, Sampling(4, 16))
        assert tokens(groups) == before
        assert gap(policy, prompts, groups, 1.0) < 1e-3
    finally:
        engine.close()


@pytest.mark.slow
def test_two_ranks_with_an_engine_each_and_with_one_between_them(tmp_path):
    """Both in one run, which also shows that closing an engine leaves the trainer's process group alone."""
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    launcher = subprocess.Popen(
        [*command, "-m", "tests.test_vllm_local", str(tmp_path)],
        env=os.environ | environment,
        cwd=Path(__file__).parents[1],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, errors = launcher.communicate(timeout=200)
    except subprocess.TimeoutExpired:
        os.killpg(launcher.pid, signal.SIGKILL)  # the ranks with it
        raise
    assert launcher.returncode == 0, errors[-4000:]
    results = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert results[0] == results[1]
    assert set(results[0]) == {"1", "2"}
    for result in results[0].values():
        assert max(result["gaps"]) < 1e-4
    assert results[0]["1"]["tokens"] == results[0]["2"]["tokens"]


def two_ranks(out: Path) -> None:
    """What each rank of the test above does."""
    ranks = join(deadline_s=60.0)
    policy, results = new_policy(), {}
    prompts = [prompt(policy, text) for text in (*PROMPTS, "an odd number")] + [prompt(policy, "of prompts")]
    for split in (1, 2):
        rollout = ROLLOUT.model_copy(update={"vllm": config.VLLM(tensor_parallel=split)})
        engine = VLLMEngine(policy, out, rollout, "float32", ranks)
        shared = SharedEngine(engine, ranks, split)
        gaps = []
        for version in range(2):
            trained = new_policy(version)
            shared.update_weights(weights(trained), version)
            groups = shared.generate(prompts, Sampling(3, 8, seed=version))
            gaps.append(gap(trained, prompts, groups, 1.0))
        shared.close()
        results[split] = {"gaps": gaps, "tokens": tokens(groups)}
        assert ranks.gather([ranks.rank]) == [0, 1]
    (out / f"{ranks.rank}.json").write_text(json.dumps(results))


def test_tensor_parallelism_without_its_ranks_is_refused(tmp_path):
    rollout = ROLLOUT.model_copy(update={"vllm": config.VLLM(tensor_parallel=2)})
    with pytest.raises(UserError, match=r"tensor_parallel=2 does not divide the 1 ranks"):
        VLLMEngine(new_policy(), tmp_path, rollout, "float32", Ranks())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"logprobs_mode": "raw_logprobs"}, "options sets logprobs_mode"),
        ({"no_such_thing": 1}, "no_such_thing"),
    ],
)
def test_options_that_spoil_the_numbers_or_do_not_exist_are_refused(tmp_path, options, message):
    rollout = ROLLOUT.model_copy(update={"vllm": config.VLLM(options=options)})
    with pytest.raises(UserError, match=message):
        VLLMEngine(new_policy(), tmp_path, rollout, "float32", Ranks())


def test_heads_that_vllm_cannot_run_on_the_cpu_are_refused_at_the_start(tmp_path):
    with pytest.raises(UserError, match="heads are 16 wide"):
        VLLMEngine(tiny_policy(), tmp_path, ROLLOUT, "float32", Ranks())


def test_an_adapter_without_readable_base_weights_is_refused(tmp_path):
    policy = new_policy(lora=config.LoRA(rank=4, sync="adapter"))
    with pytest.raises(UserError, match=r"set model.lora.sync=merged"):
        VLLMEngine(policy, tmp_path, ROLLOUT, "float32", Ranks())


def test_without_vllm_the_install_command_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match=r"pip install 'grpo-math\[vllm\]'"):
        import_vllm()


def test_a_temperature_that_vllm_would_raise_is_refused():
    policy = new_policy()
    with pytest.raises(UserError, match=r"temperature=0.005 is less than vLLM can sample at"):
        sampling_fields(Sampling(1, 1, temperature=0.005), prompt(policy, "1"), policy.eos_ids)


def test_seeds_differ_by_run_and_problem():
    seeds = {prompt_seed(seed, name) for seed in range(50) for name in ("a", "b", "train/17")}
    assert len(seeds) == 150
    assert all(0 <= seed < 1 << 63 for seed in seeds)


def test_lora_rank_is_rounded_up():
    assert [lora_rank(r) for r in (1, 4, 12, 64, 512)] == [1, 8, 16, 64, 512]
    with pytest.raises(UserError, match=r"model.lora.rank=513"):
        lora_rank(513)


def test_the_cache_takes_what_the_completions_need_but_a_quarter_of_what_is_free():
    policy = new_policy()
    token = 2 * SPEC.layers * SPEC.kv_heads * 32 * 4
    assert kv_cache_bytes(policy.model.config, policy.context, 512, torch.float32, 1 << 40) == token * (
        512 * 256 + 16 * 256
    )
    assert kv_cache_bytes(policy.model.config, policy.context, 512, torch.float32, 1 << 29) == 1 << 27


def tokens(groups: list[list[Completion]]) -> list[list[list[int]]]:
    return [[list(c.token_ids) for c in group] for group in groups]


def process_state() -> tuple[object, ...]:
    """What a library in the trainer's process should not touch."""
    return (
        dict(os.environ),
        random.getstate(),
        torch.get_rng_state().tolist(),
        torch.get_num_threads(),
        torch.set_num_threads,
        torch.get_default_dtype(),
        torch.get_float32_matmul_precision(),
        torch.is_grad_enabled(),
    )


def resident_kb() -> int:
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


if __name__ == "__main__":
    two_ranks(Path(sys.argv[1]))
