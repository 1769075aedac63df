"""The demo model in torch: a small Llama (RMSNorm, rotary attention, SwiGLU, tied embeddings)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tools.write_gguf import Shape, Weights


class Block(nn.Module):  # type: ignore[misc,unused-ignore]  # torch need not be installed
    """One transformer layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        head = shape.width // shape.heads
        self.heads, self.kv_heads = shape.heads, shape.kv_heads
        self.attn_norm = nn.RMSNorm(shape.width, eps=shape.norm_epsilon)
        self.attn_q = nn.Linear(shape.width, shape.heads * head, bias=False)
        self.attn_k = nn.Linear(shape.width, shape.kv_heads * head, bias=False)
        self.attn_v = nn.Linear(shape.width, shape.kv_heads * head, bias=False)
        self.attn_output = nn.Linear(shape.heads * head, shape.width, bias=False)
        self.ffn_norm = nn.RMSNorm(shape.width, eps=shape.norm_epsilon)
        self.ffn_gate = nn.Linear(shape.width, shape.hidden, bias=False)
        self.ffn_up = nn.Linear(shape.width, shape.hidden, bias=False)
        self.ffn_down = nn.Linear(shape.hidden, shape.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Transform activations, (batch, time, width) to the same shape."""
        h = self.attn_norm(x)
        q, k = _rotate(self._split(self.attn_q(h)), cos, sin), _rotate(self._split(self.attn_k(h)), cos, sin)
        attended = functional.scaled_dot_product_attention(q, k, self._split(self.attn_v(h)), is_causal=True)
        x = x + self.attn_output(attended.transpose(1, 2).flatten(2))
        h = self.ffn_norm(x)
        down: Tensor = self.ffn_down(functional.silu(self.ffn_gate(h)) * self.ffn_up(h))
        return x + down

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)


class DemoModel(nn.Module):  # type: ignore[misc,unused-ignore]
    """The model: token ids (batch, time) to logits (batch, time, vocabulary)."""

    def __init__(self, shape: Shape, num_tokens: int) -> None:
        super().__init__()
        assert shape.heads == shape.kv_heads, "the demo model needs no grouped heads"
        self.shape = shape
        self.token_embd = nn.Embedding(num_tokens, shape.width)
        self.blk = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.output_norm = nn.RMSNorm(shape.width, eps=shape.norm_epsilon)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Compute the logits of each next token."""
        head = self.shape.width // self.shape.heads
        cos, sin = _rotary_table(tokens.shape[1], head, self.shape.rope_base)
        x = self.token_embd(tokens)
        for block in self.blk:
            x = block(x, cos, sin)
        return functional.linear(self.output_norm(x), self.token_embd.weight)

    def weights(self) -> Weights:
        """Return the weights by their names, which are llama.cpp's."""
        return {name: value.detach().float().numpy() for name, value in self.state_dict().items()}


def _rotary_table(time: int, head: int, base: float) -> tuple[Tensor, Tensor]:
    frequencies = base ** (-torch.arange(0, head, 2).float() / head)
    angles = torch.outer(torch.arange(time).float(), frequencies)
    return torch.cat((angles, angles), 1).cos(), torch.cat((angles, angles), 1).sin()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
