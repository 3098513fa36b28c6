"""Hugging Face transformers: a language model, a classifier, and an encoder with a decoder."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)

from tests.thirdparty.common import Case, run_all, wrapped


def tokens(count: int, length: int, kinds: int) -> Tensor:
    """Random token ids."""
    return torch.randint(0, kinds, (count, length), generator=torch.Generator().manual_seed(1))


def gpt2() -> nn.Module:
    """One block of width 8."""
    sizes = {"vocab_size": 13, "n_positions": 6, "n_embd": 8, "n_layer": 1, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))


def bert() -> nn.Module:
    """One block of width 8, three classes."""
    sizes = {"vocab_size": 13, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    more = {"intermediate_size": 16, "max_position_embeddings": 6, "num_labels": 3}
    return BertForSequenceClassification(BertConfig(**sizes, **more))


def t5() -> nn.Module:
    """One block on each side, width 8."""
    sizes = {"vocab_size": 13, "d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    return T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0))


def labelled(net: Any, batch: Any) -> Tensor:
    """The loss that the model itself computes."""
    return net(input_ids=batch[0], labels=batch[-1]).loss


def texts(length: int = 6) -> tuple[Tensor]:
    """Token ids alone, which are their own labels."""
    return (tokens(16, length, 13),)


def classified() -> tuple[Tensor, Tensor]:
    """Token ids and classes."""
    return tokens(16, 6, 13), tokens(16, 1, 3)[:, 0]


CASES = [
    Case("transformers", "GPT-2", wrapped(gpt2, labelled, texts)),
    Case("transformers", "BERT classifier", wrapped(bert, labelled, classified)),
    Case("transformers", "T5", wrapped(t5, labelled, functools.partial(texts, 4))),
]

if __name__ == "__main__":
    run_all(CASES)
