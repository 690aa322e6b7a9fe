"""llama.cpp in a process of its own for benchmarks/serve.py; needs llama-cpp-python and no other.

The commands and answers of serve_worker.py, one prompt at a time. Greedy tokens come from
`Llama.generate`, which goes on past the end of the text.

    PEERS/llamacpp/bin/python serve_worker_llamacpp.py '{"model": "FILE.gguf", "threads": 2}'
"""

import json
import sys
import time
from itertools import islice

import llama_cpp


def main(fields: dict) -> None:
    """Load, then answer until stdin ends."""
    model = llama_cpp.Llama(
        fields["model"],
        n_ctx=2048,
        n_batch=512,
        n_ubatch=512,
        n_threads=fields["threads"],
        n_threads_batch=fields["threads"],
        use_mlock=False,
        verbose=False,
    )
    name = f"llama-cpp-python {llama_cpp.__version__}"
    print(json.dumps({"name": name, "threads": fields["threads"]}), flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        (prompt,) = command["prompts"]
        began_s = time.perf_counter()
        times_s, token_ids = [], []
        for token_id in islice(model.generate(prompt, temp=0.0), command["max_tokens"]):
            times_s.append(time.perf_counter() - began_s)
            token_ids.append(token_id)
        answer = {
            "seconds": times_s[-1],
            "first_s": [times_s[0]],
            "total_s": [times_s[-1]],
            "token_ids": [token_ids],
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
