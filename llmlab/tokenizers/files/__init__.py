"""The file formats of tokenizers, one module a format."""
