"""Models of values: what is loaded as one, what is refused, and that a new head says nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertForTokenClassification

from grpo_math import config
from grpo_math.batch import Batch
from grpo_math.types import UserError
from grpo_math.value_model import ValueKind, ValueModel, load_value_model
from tests.tiny import save_tiny, tiny_policy

CPU = torch.device("cpu")


def rows(*texts: tuple[int, ...]) -> Batch:
    """Each token's value is asked for, but the first's."""
    width = max(map(len, texts))
    ids = torch.tensor([(*text, *[0] * (width - len(text))) for text in texts])
    lengths = torch.tensor([len(text) for text in texts])
    places = torch.arange(width)
    mask = (places > 0) & (places < lengths[:, None])
    zeros = torch.zeros(ids.shape)
    return Batch(ids, lengths, mask, zeros, zeros, zeros)


@pytest.mark.parametrize("kind", ["outcome", "process", "critic"])
def test_a_new_head_says_0_and_a_taught_one_the_same_in_any_company(tmp_path: Path, kind: ValueKind) -> None:
    value = load_value_model(config.Model(path=str(save_tiny(tmp_path))), kind, CPU)
    batch = rows((5, 6, 7, 8), (9, 10), (5, 6, 11, 12, 13))
    assert not value.per_token(batch)[0].any()
    with torch.no_grad():
        for parameter in value.head.parameters():
            parameter.normal_()
    value.check()
    together = value.score(batch, 1000)
    assert bool((together[batch.loss_mask] != 0).all())
    for row in range(3):
        alone = value.score(batch.rows([row]), 1000)[0]
        assert torch.allclose(together[row, : len(alone)], alone, atol=1e-5)
    # of the same beginning, with another future: what stands before the token, and with it, decides
    known = 3 if kind == "critic" else 2
    assert torch.allclose(together[0, 1:known], together[2, 1:known], atol=1e-5)
    assert not torch.allclose(together[0, known : known + 1], together[2, known : known + 1], atol=1e-3)
    value.model.save_pretrained(tmp_path / "saved")
    value.tokenizer.save_pretrained(tmp_path / "saved")
    again = load_value_model(config.Model(path=str(tmp_path / "saved")), kind, CPU)
    assert torch.equal(again.score(batch, 1000), together)
    packed = again.with_packing(True)
    assert torch.allclose(packed.score(batch, 1000), together, atol=1e-5)


def test_padding_ends_no_text(tmp_path: Path) -> None:
    """transformers reads the value at the last token that is no padding."""
    policy = tiny_policy()
    unused = policy.tokenizer.pad_token
    policy.tokenizer.pad_token = policy.tokenizer.eos_token
    policy.model.config.pad_token_id = policy.tokenizer.eos_token_id
    policy.model.save_pretrained(tmp_path)
    policy.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no padding token besides its end of sequence; add one"):
        load_value_model(config.Model(path=str(tmp_path)), "outcome", CPU)
    policy.tokenizer.unk_token = unused
    policy.tokenizer.save_pretrained(tmp_path)
    value = load_value_model(config.Model(path=str(tmp_path)), "outcome", CPU)
    assert value.model.config.pad_token_id not in (None, policy.tokenizer.eos_token_id)


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("kind", ["outcome", "process", "critic"])
def test_a_model_that_reads_both_ways_is_refused(tmp_path: Path, kind: ValueKind, trained: bool) -> None:
    labels = 2 if kind == "process" else 1
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    make = BertForSequenceClassification if kind == "outcome" else BertForTokenClassification
    model = make(BertConfig(vocab_size=300, num_labels=labels, **sizes))
    (model if trained else model.bert).save_pretrained(tmp_path)
    tiny_policy().tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="reads both ways"):
        load_value_model(config.Model(path=str(tmp_path)), kind, CPU)


def test_adapters_and_other_labels_are_refused(tmp_path: Path) -> None:
    path = str(save_tiny(tmp_path))
    with pytest.raises(UserError, match=r"model\.lora\.rank=4: a model of values is trained whole"):
        load_value_model(config.Model(path=path, lora=config.LoRA(rank=4)), "critic", CPU)
    value = load_value_model(config.Model(path=path), "process", CPU)
    value.model.save_pretrained(tmp_path / "steps")
    value.tokenizer.save_pretrained(tmp_path / "steps")
    with pytest.raises(UserError, match=r"critic\.path=.*has 2 labels, and critic takes 1"):
        load_value_model(config.Model(path=str(tmp_path / "steps")), "critic", CPU, key="critic.path")


def test_a_head_of_another_kind_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    """A process model is a start for an outcome model, and an outcome model for a critic, which keeps its head."""
    batch = rows((5, 6, 7, 8))
    process = load_value_model(config.Model(path=str(save_tiny(tmp_path))), "process", CPU)
    with torch.no_grad():
        process.head.weight.normal_()  # type: ignore[operator, union-attr]
        process.model.get_input_embeddings().weight.mul_(2.0)
    save(process, tmp_path / "process")
    outcome = load_value_model(config.Model(path=str(tmp_path / "process")), "outcome", CPU)
    assert not outcome.score(batch, 1000).any()
    for name, weights in process.model.base_model.state_dict().items():
        assert torch.equal(weights, outcome.model.base_model.state_dict()[name])
    with torch.no_grad():
        outcome.head.weight.normal_()  # type: ignore[operator, union-attr]
    save(outcome, tmp_path / "outcome")
    critic = load_value_model(config.Model(path=str(tmp_path / "outcome")), "critic", CPU)
    # of the text before each token, where the outcome model's is of the text with it
    assert torch.allclose(critic.score(batch, 1000)[0, 2:], outcome.score(batch, 1000)[0, 1:-1], atol=1e-5)

    settings = tmp_path / "outcome" / "config.json"
    wrong = json.loads(settings.read_text()) | {"vocab_size": 100}
    settings.write_text(json.dumps(wrong))
    with pytest.raises(
        UserError, match=r"embed_tokens\.weight is \(\d+, \d+\) in its weights and \(100, \d+\) by its config"
    ):
        load_value_model(config.Model(path=str(tmp_path / "outcome")), "outcome", CPU)


def save(value: ValueModel, path: Path) -> None:
    value.model.save_pretrained(path)
    value.tokenizer.save_pretrained(path)
