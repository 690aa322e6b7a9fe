"""How fast the operators are here, beside PyTorch's: `python -m llmlab.kernels.bench --help`."""
