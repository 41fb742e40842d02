"""LoRA on policies: it begins as the identity, only its own parameters learn, and it goes into the layers."""

import copy
import sys
from typing import Any

import pytest
import torch
from torch import nn

from policy_decorator.base_policies.bet import BehaviorTransformer, BeTConfig
from policy_decorator.errors import UserError
from policy_decorator.rl.lora import Adapted, LoRAConfig

pytest.importorskip("peft", reason="PEFT is not installed")

SIZES: dict[str, Any] = {"context": 3, "clusters": 3, "layers": 2, "heads": 2, "width": 16, "gpt_output": 12}
RANK = 2


def _bet(**changes: Any) -> BehaviorTransformer:
    policy = BehaviorTransformer(BeTConfig(**SIZES, **changes), 5, 2)
    policy.centres.copy_(torch.rand(3, 2) - 0.5)
    return policy


def _adapted(policy: Any) -> Adapted:
    return Adapted(policy, policy.lora_layers, LoRAConfig(RANK, 3 * RANK))


def _stirred(adapted: Adapted) -> Adapted:
    with torch.no_grad():
        for p in adapted.learned:
            p.normal_(0, 0.3)
    return adapted


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_it_begins_as_the_identity_bit_for_bit(dropout: float) -> None:
    policy, window = _bet(dropout=dropout), torch.randn(7, 3, 5)
    adapted, answers = _adapted(policy), []
    for asked in (policy.act, adapted.policy.act, adapted.act, adapted.merged().act):  # pyright: ignore
        torch.manual_seed(3)
        answers.append(asked(window))
    assert all(torch.equal(answers[0], answer) for answer in answers[1:])


def test_only_its_own_parameters_learn() -> None:
    policy = _bet()
    adapted, before = _adapted(policy), {name: x.clone() for name, x in policy.state_dict().items()}
    width, head = 16, 3 * (1 + 2)
    a_block = RANK * (width + 3 * width) + RANK * (width + width)  # into and out of attention
    assert sum(p.numel() for p in adapted.learned) == 2 * a_block + RANK * (12 + head)
    assert all("lora_" in name for name, p in adapted.named_parameters() if p.requires_grad)
    optimizer = torch.optim.SGD(adapted.parameters(), 1.0)
    for _ in range(2):  # at the first step B is zero, and A has no gradient
        optimizer.zero_grad()
        adapted.policy.means(torch.randn(9, 3, 5)).square().sum().backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in adapted.learned)
    assert all(torch.equal(x, before[name]) for name, x in policy.state_dict().items())
    frozen = {name.replace(".base_layer", ""): x for name, x in adapted.policy.state_dict().items()}
    assert all(torch.equal(frozen[name], x) for name, x in before.items())


def test_without_its_settings_all_of_the_copy_learns() -> None:
    policy = _bet()
    adapted, before = Adapted(policy, policy.lora_layers, None), {k: x.clone() for k, x in policy.state_dict().items()}
    assert sum(p.numel() for p in adapted.learned) == sum(p.numel() for p in policy.parameters())
    window = torch.randn(9, 3, 5)
    for answers in (adapted.act, adapted.merged().act):  # pyright: ignore
        torch.manual_seed(3)
        first = answers(window)
        torch.manual_seed(3)
        assert torch.equal(first, policy.act(window))
    _stirred(adapted)
    torch.manual_seed(3)
    assert not torch.equal(adapted.act(window), first)
    assert all(torch.equal(x, before[name]) for name, x in policy.state_dict().items())


def test_merged_weights_are_w_plus_the_weighed_product() -> None:
    policy = _bet()
    adapted = _stirred(_adapted(policy))
    merged: Any = adapted.merged()
    assert list(merged.state_dict()) == list(policy.state_dict())
    layer = adapted.policy.blocks[1].attention_in
    product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    torch.testing.assert_close(merged.blocks[1].attention_in.weight, policy.blocks[1].attention_in.weight + 3 * product)  # pyright: ignore
    assert torch.equal(merged.blocks[1].mlp[0].weight, policy.blocks[1].mlp[0].weight)  # pyright: ignore
    window = torch.randn(9, 3, 5)
    torch.testing.assert_close(
        merged.deterministic().means(window), adapted.policy.deterministic().means(window), rtol=0, atol=1e-5
    )
    assert (merged.deterministic().means(window) - policy.deterministic().means(window)).abs().max() > 0.01


def test_what_acts_is_what_is_saved_also_after_it_has_learned_or_was_restored() -> None:
    adapted, window = _stirred(_adapted(_bet(dropout=0.0))), torch.randn(9, 3, 5)
    first, state = adapted.act(window), copy.deepcopy(adapted.state_dict())
    assert torch.equal(first, adapted.merged().act(window))  # pyright: ignore
    _stirred(adapted)
    second = adapted.act(window)
    assert torch.equal(second, adapted.merged().act(window))  # pyright: ignore
    assert not torch.equal(first, second)
    adapted.load_state_dict(state)
    assert torch.equal(adapted.act(window), first)


def test_without_peft_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r'pip install "policy-decorator\[lora\]"'):
        Adapted(nn.Linear(2, 2), ["0"], LoRAConfig())
    with pytest.raises(UserError, match="at least 1"):
        LoRAConfig(lora_rank=0)
