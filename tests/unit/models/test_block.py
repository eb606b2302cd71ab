"""The transformer block against timm's, and with outputs for the last tokens alone."""

from functools import partial

import pytest
import torch
from timm.models.vision_transformer import Block as TimmBlock
from torch import nn

from m2d.models.transformer.block import Attention, Block, attend, make_blocks


def blocks(width: int = 48, heads: int = 4) -> tuple[Block, nn.Module]:
    """Ours and timm's, of the same weights, all of them random."""
    theirs = TimmBlock(width, heads, qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6))
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    ours = Block(width, heads)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def gradients(block: nn.Module, x: torch.Tensor, **options) -> list[torch.Tensor]:
    """The output, and gradients of the input and of every parameter by name."""
    x = x.clone().requires_grad_()
    output = block(x, **options)
    weights = torch.linspace(-1, 1, output.shape[2]) * torch.arange(1, x.shape[1] + 1)[-output.shape[1] :, None]
    (output * weights).sum().backward()
    return [output, x.grad, *(p.grad for _, p in sorted(block.named_parameters()))]


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("recompute", ["nothing", "all", "gelu"])
def test_a_block_is_timms(heads, recompute):
    ours, theirs = blocks(heads=heads)
    ours.recompute, ours.mlp.recompute_gelu = recompute == "all", recompute == "gelu"
    x = torch.randn(2, 11, 48)
    torch.testing.assert_close(gradients(ours, x), gradients(theirs, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("first", [1, 7, 10])
def test_tokens_before_the_first_are_attended_to_and_not_computed(first, recompute):
    block, reference = blocks()
    block.recompute = recompute
    x = torch.randn(2, 11, 48)

    class Tail(nn.Module):
        """All tokens computed, the last ones taken."""

        def __init__(self):
            super().__init__()
            self.block = reference

        def forward(self, x):
            return self.block(x)[:, first:]

    torch.testing.assert_close(gradients(block, x, first=first), gradients(Tail(), x), rtol=1e-4, atol=1e-4)


def test_attention_of_one_head_written_out():
    qkv = torch.randn(2, 5, 3 * 8)
    query, key, value = qkv.chunk(3, dim=2)
    weights = torch.exp(query @ key.mT / 8**0.5)
    torch.testing.assert_close(attend(qkv, heads=1), weights / weights.sum(dim=2, keepdim=True) @ value)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="5 attention heads do not divide a width of 48"):
        Attention(48, 5)


def test_make_blocks():
    made = make_blocks(3, 48, 4, 2.0, nn.LayerNorm)
    assert len(made) == 3
    assert {block.mlp.fc1.out_features for block in made} == {96}
    assert {module.eps for module in made.modules() if isinstance(module, nn.LayerNorm)} == {1e-5}
