"""Kernels: tensors in, tensors out; nothing here knows models, tokenizers or requests."""
