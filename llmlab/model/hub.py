"""Models of the Hugging Face hub, fetched into its cache (needs the extra `hub`).

Only what a model folder is made of is fetched: no pickled weights, no second copy in another
format, no code. Not here: reading the folder (hf_import.py).
"""

from pathlib import Path

from llmlab.errors import MissingExtraError, ModelError

try:
    import huggingface_hub
except ImportError as error:
    raise MissingExtraError("huggingface_hub", "hub") from error

_FILES = [
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
]


def fetch_model(source: str, revision: str | None) -> Path:
    """Fetch a model, or what is new of it, and return its folder, named after its commit.

    Args:
        source: `hf:OWNER/NAME`.
        revision: a commit, tag or branch; the newest commit when None.

    Raises:
        ModelError: the address has another form, there is no such model, it has no safetensors, or
            the hub cannot be reached.
    """
    name = source.removeprefix("hf:")
    if name.count("/") != 1:
        raise ModelError(
            f"{source!r} is not of the form hf:OWNER/NAME; for example hf:Qwen/Qwen3-0.6B"
        )
    try:
        folder = huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=_FILES)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()
        raise ModelError(
            f"cannot fetch {source}: {reason[0] if reason else type(error).__name__}; check the "
            "name, the revision and the network, or copy the files and give their folder"
        ) from error
    if not list(Path(folder).glob("model*.safetensors")):
        raise ModelError(
            f"{source} has no model.safetensors; pickled weights (pytorch_model.bin) can run any "
            "code when they are opened and are not fetched; take a revision with safetensors"
        )
    return Path(folder)
