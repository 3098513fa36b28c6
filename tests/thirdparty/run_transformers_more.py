"""More of transformers: tied weights with padding, experts, a state-space model."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from tests.thirdparty.common import Case, run_all, wrapped
from tests.thirdparty.run_transformers import labelled, texts, tokens

SIZES = {
    "vocab_size": 13,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 12,
}


def llama() -> nn.Module:
    """One block, two queries for each key."""
    return LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=1, pad_token_id=0))


def mixtral() -> nn.Module:
    """Two experts, one for each token, and the loss of their router."""
    experts = {"num_local_experts": 2, "num_experts_per_tok": 1, "output_router_logits": True}
    return MixtralForCausalLM(MixtralConfig(**SIZES, **experts, num_key_value_heads=1))


def mamba() -> nn.Module:
    """Two states for each of eight channels."""
    sizes = {"vocab_size": 13, "hidden_size": 4, "num_hidden_layers": 1, "state_size": 2}
    return MambaForCausalLM(MambaConfig(**sizes, expand=2, time_step_rank=1))


def masked_bert() -> nn.Module:
    """Its decoder has the weight of its embedding, of which one row is padding."""
    return BertForMaskedLM(BertConfig(**SIZES, max_position_embeddings=6))


def bart() -> nn.Module:
    """Width 8; one weight, with padding, in encoder, decoder and head."""
    both = ("layers", "attention_heads", "ffn_dim")
    sizes = dict(zip(both, (1, 2, 8), strict=True))
    sides = {f"{side}_{k}": n for side in ("encoder", "decoder") for k, n in sizes.items()}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    config = BartConfig(vocab_size=13, d_model=8, max_position_embeddings=6, **sides, **ids)
    return BartForConditionalGeneration(config)


def some_masked() -> tuple[Tensor, Tensor]:
    """Token ids, padding among them, and labels of some."""
    ids, labels = tokens(16, 6, 13), tokens(16, 6, 3)
    return ids, labels.masked_fill(ids > 8, -100)


def unpadded() -> tuple[Tensor, Tensor]:
    """The same without padding."""
    ids, labels = some_masked()
    return ids.clamp(min=1), labels


CASES = [
    Case("transformers", "Llama", wrapped(llama, labelled, texts)),
    Case("transformers", "Mixtral", wrapped(mixtral, labelled, texts)),
    Case("transformers", "Mamba", wrapped(mamba, labelled, texts)),
    Case("transformers", "BERT masked, padded", wrapped(masked_bert, labelled, some_masked)),
    Case("transformers", "BERT masked", wrapped(masked_bert, labelled, unpadded)),
    Case("transformers", "BART", wrapped(bart, labelled, texts)),
]

if __name__ == "__main__":
    run_all(CASES)
