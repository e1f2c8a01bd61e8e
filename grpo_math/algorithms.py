"""Named algorithms: each preset fills in an advantage, a loss and sampling rules; a config overrides any part.

A preset is plain data in the shape of the config file, so `algorithm: dapo` and writing its lines out by hand are the
same run. Left out: the equations, which are in advantages.py, losses.py, kl.py and correction.py.
"""

from __future__ import annotations

from typing import Any, get_args

from grpo_math.config_preference import PreferenceName

ALGORITHMS: dict[str, dict[str, Any]] = {
    # group-normalised advantage, each completion weighs the same
    "grpo": {"advantage": "group_norm", "loss": {"name": "grpo"}},
    # GRPO whose loss is one mean over the tokens (the form most trainers default to)
    "bnpo": {"advantage": "group_norm", "loss": {"name": "bnpo"}},
    # clip-higher, token mean, dynamic sampling, soft overlong penalty
    "dapo": {
        "advantage": "group_norm",
        "loss": {"name": "dapo"},
        "dynamic_sampling": {"enabled": True},
        "overlong": {"penalty_buffer": 0.2},
    },
    # no division by std, none by the completion's own length
    "dr_grpo": {"advantage": "group_center", "loss": {"name": "dr_grpo"}},
    # ratio of sequences, so the clip range is that of a geometric mean
    "gspo": {"advantage": "group_norm", "loss": {"name": "gspo"}},
    # the clipped ratio is a constant weight on the log-likelihood
    "cispo": {"advantage": "group_norm", "loss": {"name": "cispo"}},
    # a smooth gate in place of the clip
    "sapo": {"advantage": "group_norm", "loss": {"name": "sapo"}},
    # the baseline is the mean of the siblings
    "rloo": {"advantage": "leave_one_out", "loss": {"name": "reinforce"}},
    # the group's mean as the baseline
    "reinforce": {"advantage": "group_center", "loss": {"name": "reinforce"}},
    # normalised over the whole step; the second form takes the group's mean off first
    "reinforce_pp": {
        "advantage": "reinforce_pp",
        "loss": {"name": "bnpo"},
        "kl": {"coefficient": 0.01, "where": "reward", "estimator": "k1"},
    },
    "reinforce_pp_baseline": {
        "advantage": "reinforce_pp_baseline",
        "loss": {"name": "bnpo"},
        "kl": {"coefficient": 0.01, "where": "loss", "estimator": "k2", "unbiased": False},
    },
    # an actor and a critic: GAE, the KL in each token's reward, whitened advantages
    "ppo": {
        "advantage": "gae",
        "loss": {"name": "bnpo"},
        "kl": {"coefficient": 0.01, "where": "reward", "estimator": "k1"},
        "whiten": True,
    },
    # the value of a step without a critic, from continuations
    "vineppo": {"advantage": "vine", "loss": {"name": "bnpo"}, "whiten": True},
    # steps' rewards in place of the completion's
    "grpo_process": {"advantage": "process", "loss": {"name": "grpo"}},
    # the reward model and the reference follow the policy, every 25 steps
    "grpo_iterative": {
        "advantage": "group_norm",
        "loss": {"name": "grpo"},
        "kl": {"coefficient": 0.04, "reference": "refresh", "refresh_every": 25},
        "retraining": {"every": 25},
    },
    # maximum-likelihood RL: (r - mean) / mean
    "maxrl": {"advantage": "maxrl", "loss": {"name": "bnpo"}},
    # no clip; the advantage is scaled up by how few completions have a reward (verl's reading of the paper's alpha)
    "gpg": {"advantage": "gpg", "loss": {"name": "reinforce", "reduction": "token_mean"}},
    # The best completion of a group gets the margin over the second best, the others nothing
    "pass_at_k": {"advantage": "pass_at_k", "loss": {"name": "grpo"}},
}

# Losses are presets under their own names; beside them, ways to come by pairs and references
PREFERENCES: dict[str, dict[str, Any]] = {
    # dpo is what is left where nothing is said, so that `loss: {mix: ...}` has nothing to contradict
    **{name: {"loss": {"name": name}} if name != "dpo" else {} for name in get_args(PreferenceName)},
    "mpo": {"loss": {"mix": {"dpo": 0.8, "bco_pair": 0.2, "sft": 1.0}}},
    # fresh pairs of the policy's own completions at each step, or for many steps at once
    "online_dpo": {"online": {"every": 1}},
    "online_ipo": {"loss": {"name": "ipo"}, "online": {"every": 1}},
    "iterative_dpo": {"online": {"every": 20}, "reference": "round"},
    # the reference is whoever sampled the pairs
    "bpo": {"online": {"every": 1}, "reference": "behaviour"},
    # the data in stages; what one ends with is the next one's reference
    "sdpo": {"stages": 3, "reference": "precomputed"},
}

REST: dict[str, dict[str, Any]] = {
    # on from the policy that there is, with a threshold that rises
    "rest": {"start": "policy"},
    # from the base model each round, few solutions of a problem, right or wrong and nothing between
    "rest_em": {"start": "base", "per_problem": 10, "thresholds": [1.0]},
    # imitate the best completion of each problem, once (rejection sampling of Llama 2)
    "best_of_n": {"rounds": 1, "best_only": True, "per_problem": 1, "thresholds": [1.0]},
}

PRESETS: dict[str, dict[str, dict[str, Any]]] = {"grpo": ALGORITHMS, "preference": PREFERENCES, "rest": REST}

PAPERS: dict[str, str] = {
    "grpo": "Shao et al. 2024, arXiv:2402.03300",
    "bnpo": "the token-mean form that most trainers default to",
    "dapo": "Yu et al. 2025, arXiv:2503.14476",
    "dr_grpo": "Liu et al. 2025, arXiv:2503.20783",
    "gspo": "Zheng et al. 2025, arXiv:2507.18071",
    "cispo": "MiniMax 2025, arXiv:2506.13585",
    "sapo": "Gao et al. 2025, arXiv:2511.20347",
    "rloo": "Ahmadian et al. 2024, arXiv:2402.14740",
    "reinforce": "Williams 1992",
    "reinforce_pp": "Hu et al. 2025, arXiv:2501.03262",
    "reinforce_pp_baseline": "Hu et al. 2025, arXiv:2501.03262",
    "maxrl": "Tajwar et al. 2026, arXiv:2602.02710",
    "ppo": "Schulman et al. 2017, arXiv:1707.06347",
    "vineppo": "Kazemnejad et al. 2024, arXiv:2410.01679",
    "grpo_process": "Shao et al. 2024, arXiv:2402.03300, section 4.1.3",
    "grpo_iterative": "Shao et al. 2024, arXiv:2402.03300, algorithm 1",
    "gpg": "Chu et al. 2025, arXiv:2504.02546",
    "pass_at_k": "Tang et al. 2025, arXiv:2503.19595",
}

# losses.LOSSES once more, (ratio, surrogate, reduction), for those who must not import torch; a test holds them equal
LOSS_PARTS: dict[str, tuple[str, str, str]] = {
    "grpo": ("token", "clip", "sequence_mean"),
    "bnpo": ("token", "clip", "token_mean"),
    "dapo": ("token", "clip", "token_mean"),
    "dr_grpo": ("token", "clip", "constant_length"),
    "gspo": ("sequence", "clip", "sequence_mean"),
    "cispo": ("token", "cispo", "token_mean"),
    "sapo": ("token", "sapo", "sequence_mean"),
    "reinforce": ("token", "reinforce", "sequence_sum"),
}


def table() -> list[tuple[str, ...]]:
    """(algorithm, advantage, ratio, surrogate, reduction, paper) of each preset."""
    rows = []
    for name, preset in ALGORITHMS.items():
        parts = zip(("ratio", "surrogate", "reduction"), LOSS_PARTS[preset["loss"]["name"]], strict=True)
        rows.append((name, preset["advantage"], *(preset["loss"].get(key, part) for key, part in parts), PAPERS[name]))
    return rows


def offline_table() -> list[tuple[str, ...]]:
    """(algorithm, recipe, what it is short for) of the other recipes' presets that are more than a loss's name."""
    losses = get_args(PreferenceName)
    return [
        (name, recipe, " ".join(f"{key}={_flow(value)}" for key, value in preset.items()), "", "", "")
        for recipe, presets in PRESETS.items()
        for name, preset in presets.items()
        if recipe != "grpo" and name not in losses
    ]


def _flow(value: Any) -> str:
    """As it would be written on the command line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(item)}" for key, item in value.items()) + "}"
    return str(value).lower() if isinstance(value, bool) else str(value)
