"""The keys of credit assignment, critic and retraining: presets, what is dumped, what is refused and in which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from grpo_math.config_file import dump_config, load_config
from grpo_math.types import UserError

BASE = "run_dir: r\nmodel: m\ntask: arithmetic\n"
JUDGE = "rewards: [{verifier: math}, {model: judge}]\n"


@pytest.mark.parametrize("name", ["ppo", "vineppo", "grpo_process", "grpo_iterative"])
def test_a_preset_loads_and_so_does_what_is_dumped_of_it(tmp_path: Path, name: str) -> None:
    path = tmp_path / "run.yaml"
    more = JUDGE if name == "grpo_iterative" else "pretraining: a.jsonl\n"
    path.write_text(f"{BASE}algorithm: {name}\n{more}")
    cfg: Any = load_config(path, [] if name == "grpo_iterative" else ["pretraining.data.max_length=99"])
    assert name == "grpo_iterative" or (cfg.pretraining.data.files, cfg.pretraining.data.max_length) == (
        ["a.jsonl"],
        99,
    )
    assert cfg.advantage == {"ppo": "gae", "vineppo": "vine", "grpo_process": "process"}.get(name, "group_norm")
    assert cfg.whiten == (name in ("ppo", "vineppo"))
    assert (cfg.retraining is not None) == (name == "grpo_iterative")
    path.write_text(dump_config(cfg))
    assert load_config(path) == cfg


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "advantage: process\nkl: {coefficient: 0.1, where: reward}",
            "advantage=process is of steps; set kl.where=loss",
        ),
        ("advantage: vine\nkl: {coefficient: 0.1, where: reward}", "advantage=vine is of steps; set kl.where=loss"),
        (
            "advantage: vine\nrun: {staleness: 1}\ncorrection: token_truncate\nrollout: {engine: vllm_server, "
            "server: {urls: [http://a:1]}}",
            "run.staleness=1 has newer ones by then; set run.staleness=0",
        ),
        ("advantage: vine\noverlong: {penalty_buffer: 0.5}", "counts what is right; set overlong.penalty_buffer=0"),
        ("advantage: vine\nrewards: [math, {model: m}]", "rewards.1 has weight=1.0, and advantage=vine counts"),
        ("advantage: vine\nrewards: [{model: m}]", "rewards.0 has weight=1.0, and advantage=vine counts"),
        ("process: {share: 0.5}", "process is read by advantage=process, and advantage=group_norm; leave it out"),
        ("algorithm: ppo\nvine: {continuations: 2}", "vine is read by advantage=vine, and advantage=gae; leave it out"),
        ("critic: {lam: 1.0}", "critic is read by advantage=gae, and advantage=group_norm; leave it out"),
        (
            "algorithm: ppo\nsteps: 40\ncritic: {warmup_steps: 40}",
            "critic.warmup_steps=40 of steps=40 leave the policy none; try critic.warmup_steps=4",
        ),
        ("algorithm: ppo\ncritic: {lam: 1.5}", "critic.lam=1.5: must be at most 1"),
        ("algorithm: ppo\ncritic: {gamma: 0}", "must be above 0"),
        ("process: {share: 0}", "must be above 0"),
        ("kl: {coefficient: 0.1, per_token: true}", "per_token=true is of a KL in the reward"),
        ("kl: {per_token: true}", "set where=reward"),
        ("pretraining: a\nsampling: {temperature: 0.7}", "sampling.temperature=0.7 trains another one; set sampling"),
        ("retraining: {every: 5}", "rewards has 0; list one: rewards=[{verifier: NAME}, {model: DIR, kind: outcome}]"),
        (
            "retraining: {every: 5}\nrewards: [{model: a, name: x}, {model: b, name: y}]",
            "retraining trains the outcome reward model on, and rewards has 2",
        ),
        ("retraining: {every: 5}\nrewards: [{model: a, url: http://a:1}]", "leave url of it out"),
        ("retraining: {every: 5}\nrewards: [{model: a, offload: true}]", "leave offload of it out"),
        (
            "algorithm: grpo_iterative\nretraining: {every: 5}\n" + JUDGE,
            "retraining.every=5 moves the reference too, and kl.reference=refresh with kl.refresh_every=25; set "
            "kl.reference=refresh and kl.refresh_every=5",
        ),
        ("retraining: {replay: 1.0}\n" + JUDGE, "must be below 1"),
        ("group_size: 1", "advantage=group_norm is relative to the group"),
        ("algorithm: vineppo\ngroup_size: 1", "advantage=vine is relative to the group"),
        ("algorithm: ppo\ngroup_size: 1\ndynamic_sampling: {enabled: true}", "or dynamic_sampling.enabled=false"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(BASE + text)
    with pytest.raises(UserError) as caught:
        load_config(path)
    assert said in str(caught.value), caught.value
