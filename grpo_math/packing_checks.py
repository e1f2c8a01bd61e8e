"""Whether the rows of a packed batch are computed as if each were alone. Left out: how they are packed (packing.py)."""

# N tokens of all rows together, H hidden size

from __future__ import annotations

import inspect

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from grpo_math.batch import Batch
from grpo_math.packing import Layout, padded
from grpo_math.token_model import TokenModel
from grpo_math.types import UserError

# the kinds of layer (transformers' config.layer_types) that can keep rows apart. Others carry a state from token to
# token, as linear attention and convolutions do, or count from the start of the pass, as chunked attention does
ROWS_APART = ("full_attention", "sliding_attention")
# how far the states of a row may move, by the weights' dtype, relative to their size: where the tokens of another row
# change (nothing, but for the rounding of experts), and against the row by itself (a kernel of another kind)
TOLERANCES = {torch.float32: (1e-4, 1e-3), torch.bfloat16: (3e-3, 0.2)}


@torch.no_grad()
def check_packing(policy: TokenModel) -> None:
    """Raises UserError where the policy packs and rows of its model would not be computed as if each were alone.

    What transformers' classes say of themselves does not settle it: some take position ids and yet let rows see each
    other. So it is tried, on two short rows."""
    if not policy.packing:
        return
    if reason := _known_reason(policy) or _seen_reason(policy):
        settings = policy.model.config
        raise UserError(
            f"backend.packing=true: {type(policy.model).__name__} with {settings._attn_implementation} attention "
            f"{reason}; set backend.packing=false"
        )


def _known_reason(policy: TokenModel) -> str | None:
    """What the model says of itself. A state that fades, or a chunk longer than a trial, may not show in one."""
    others = {kind for kind in getattr(policy.model.config, "layer_types", None) or () if kind not in ROWS_APART}
    if others:
        return f"has layers of the kind {', '.join(sorted(others))}, which do not keep rows apart"
    if getattr(policy.model, "_is_stateful", False):
        return "carries a state from token to token, so a row would go on from the one before it"
    if "position_ids" not in inspect.signature(policy.model.base_model.forward).parameters:
        return "takes no position ids, which are what tells rows apart"
    return None


def _seen_reason(policy: TokenModel) -> str | None:
    """What two rows show, of 5 and 12 tokens."""
    vocabulary = policy.model.get_input_embeddings().num_embeddings
    ids = torch.arange(17, device=policy.device) % vocabulary
    first, row = ids[:5], ids[5:]
    beside, changed = (_states(policy, policy.layout, other, row)[5:] for other in (first, first.flip(0)))
    leak, shift = TOLERANCES[policy.model.dtype]
    if not _gap(changed, beside) < leak:
        return "lets a row see the tokens of the row before it"
    if not _gap(beside, _states(policy, padded, row)) < shift:
        return "computes a row beside another differently than by itself"
    return None


def _states(policy: TokenModel, layout: Layout, *rows: Tensor) -> Tensor:
    """(N, H): the last hidden states of these rows, in float32."""
    token_ids = pad_sequence(list(rows), batch_first=True)
    lengths = torch.tensor([len(row) for row in rows], device=token_ids.device)
    zeros = torch.zeros(token_ids.shape, device=token_ids.device)
    read, _ = layout(Batch(token_ids, lengths, zeros.bool(), zeros, zeros, zeros), zeros.bool())
    states: Tensor = policy.model.base_model(**read, use_cache=False).last_hidden_state
    return states[0].float()


def _gap(ours: Tensor, theirs: Tensor) -> float:
    """max over tokens of |ours - theirs| / |theirs|"""
    return float(((ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)).max())
