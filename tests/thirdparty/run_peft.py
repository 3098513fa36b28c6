"""PEFT: low-rank adapters in frozen language models."""

from __future__ import annotations

import functools

from peft import LoraConfig, get_peft_model
from torch import nn

from tests.thirdparty.common import Case, run_all, wrapped
from tests.thirdparty.run_transformers import bert, classified, gpt2, labelled, texts


def adapted(build: object, **options: object) -> nn.Module:
    """Adapters of rank 2 in a model."""
    return get_peft_model(build(), LoraConfig(r=2, lora_alpha=4, **options))  # type: ignore[operator]


GPT = functools.partial(adapted, gpt2, target_modules=["c_attn"], fan_in_fan_out=True)
BERT = functools.partial(
    adapted, bert, target_modules=["query", "value"], modules_to_save=["classifier"]
)
DORA = functools.partial(adapted, bert, target_modules=["query", "value"], use_dora=True)

CASES = [
    Case("peft", "LoRA of GPT-2", wrapped(GPT, labelled, texts)),
    Case("peft", "LoRA of BERT and head", wrapped(BERT, labelled, classified)),
    Case("peft", "DoRA of BERT", wrapped(DORA, labelled, classified)),
]

if __name__ == "__main__":
    run_all(CASES)
