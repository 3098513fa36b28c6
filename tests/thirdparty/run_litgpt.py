"""litgpt: a GPT-NeoX, a Llama, and low-rank adapters of one, by the step of its documentation."""

from __future__ import annotations

from typing import Any

import litgpt
import torch
from litgpt import lora
from litgpt.utils import chunked_cross_entropy
from torch import Tensor, nn

from tests.thirdparty.common import Case, run_all, wrapped

SIZES = {"block_size": 6, "n_layer": 1, "n_head": 2, "n_embd": 8, "padded_vocab_size": 13}
LLAMA = {
    "norm_class_name": "RMSNorm",
    "mlp_class_name": "LLaMAMLP",
    "intermediate_size": 12,
    "parallel_residual": False,
    "bias": False,
    "rotary_percentage": 1.0,
}


def neox() -> nn.Module:
    """One block of width 8 with a parallel residual and rotations of a quarter."""
    return litgpt.GPT(litgpt.Config(**SIZES))


def llama() -> nn.Module:
    """One block of width 8 with gates, RMS norms, and two queries for each key."""
    return litgpt.GPT(litgpt.Config(**SIZES, **LLAMA, n_query_groups=1))


def adapted() -> nn.Module:
    """Adapters of rank 2 in the attention, and nothing else is trained."""
    ranks = {"lora_r": 2, "lora_alpha": 4, "lora_query": True, "lora_value": True}
    net = lora.GPT(lora.Config(**SIZES, **LLAMA, **ranks))
    lora.mark_only_lora_as_trainable(net)
    return net


def step(net: Any, batch: Any) -> Tensor:
    """Cross-entropy of the next token."""
    logits = net(batch[0])
    return chunked_cross_entropy(logits[..., :-1, :], batch[0][..., 1:])


def texts() -> tuple[Tensor]:
    """Random token ids."""
    return (torch.randint(0, 13, (16, 6), generator=torch.Generator().manual_seed(1)),)


CASES = [
    Case("litgpt", "GPT-NeoX", wrapped(neox, step, texts)),
    Case("litgpt", "Llama", wrapped(llama, step, texts)),
    Case("litgpt", "LoRA of Llama", wrapped(adapted, step, texts)),
]

if __name__ == "__main__":
    run_all(CASES)
