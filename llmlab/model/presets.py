"""Model sizes by name, each tried in practice; the vocabulary comes from the tokenizer.

Not here: how long to train them and with what (llmlab/pretrain). Parameter counts are for the
default architecture with a tied head and the vocabulary given.
"""

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    # 8.4M parameters at V=8192: real sentences after minutes on a laptop CPU.
    "quickstart": {
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": 512,
    },
    # 0.8M parameters at V=65: nanoGPT's shape for characters on a CPU.
    "char": {
        "hidden_size": 128,
        "intermediate_size": 344,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "max_position_embeddings": 256,
    },
    # 5.8M parameters at V=4096.
    "tiny": {
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": 512,
    },
    # 124M parameters at V=50304: the depth and width of GPT-2 small.
    "nano": {
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
        "head_dim": 64,
        "max_position_embeddings": 1024,
    },
    # 135M parameters at V=49152: SmolLM2-135M, deep and thin.
    "smollm2-135m": {
        "architecture": "LlamaForCausalLM",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "max_position_embeddings": 8192,
        "rope_theta": 100_000.0,
        "rms_norm_eps": 1e-5,
        "initializer_range": 0.041666666666666664,
    },
}
