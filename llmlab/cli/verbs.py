"""The table of verbs: where each one's config and function live, and its line of help."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Verb:
    """One verb; `config` and `run` are `module:name`, imported only when the verb is used."""

    config: str
    run: str
    help: str


VERBS: dict[str, Verb] = {
    "quickstart": Verb(
        "llmlab.quickstart.config:QuickstartConfig",
        "llmlab.cli.quickstart:run",
        "raw text to a served, evaluated model, in minutes, with a report",
    ),
    "tokenizer train": Verb(
        "llmlab.tokenizers.config:TrainConfig",
        "llmlab.cli.tokenizer:train",
        "learn a vocabulary from text (BPE, Unigram, WordPiece, characters, words)",
    ),
    "tokenizer encode": Verb(
        "llmlab.tokenizers.config:EncodeConfig",
        "llmlab.cli.tokenizer:encode",
        "text on stdin to token ids on stdout",
    ),
    "tokenizer decode": Verb(
        "llmlab.tokenizers.config:DecodeConfig",
        "llmlab.cli.tokenizer:decode",
        "token ids on stdin to text on stdout",
    ),
    "tokenizer convert": Verb(
        "llmlab.tokenizers.config:ConvertConfig",
        "llmlab.cli.tokenizer:convert",
        "tokenizer.json, tiktoken ranks or a SentencePiece model to a folder, or to GGUF",
    ),
    "tokenizer report": Verb(
        "llmlab.tokenizers.report.config:ReportConfig",
        "llmlab.cli.tokenizer_report:run",
        "how well tokenizers fit texts, side by side, with a page to look at",
    ),
    "data pack": Verb(
        "llmlab.data.config:PackConfig",
        "llmlab.cli.data:pack",
        "tokenize sources into memory-mapped shards",
    ),
    "pretrain": Verb(
        "llmlab.pretrain.config:PretrainConfig",
        "llmlab.cli.pretrain:run",
        "train a model from scratch on shards",
    ),
    "pretrain report": Verb(
        "llmlab.pretrain.report.config:ReportConfig",
        "llmlab.pretrain.report.run:report",
        "the report card of a run again, or several runs side by side",
    ),
    "pretrain sweep": Verb(
        "llmlab.pretrain.sweep.config:SweepConfig",
        "llmlab.cli.pretrain_sweep:run",
        "grid and random search, ladders of sizes and budgets, scaling laws",
    ),
    "generate": Verb(
        "llmlab.model.generate_config:GenerateConfig",
        "llmlab.cli.generate:run",
        "continue a prompt with a model folder",
    ),
    "finetune": Verb(
        "llmlab.finetune.config:FinetuneConfig",
        "llmlab.cli.finetune:run",
        "adapt a model to chats or prompt/completion pairs (LoRA or full)",
    ),
    "merge": Verb(
        "llmlab.finetune.config:MergeConfig",
        "llmlab.cli.finetune:merge",
        "fold an adapter into its base model",
    ),
    "export gguf": Verb(
        "llmlab.export.config:ExportGgufConfig",
        "llmlab.cli.export:gguf",
        "write a model folder as a GGUF file, for llama.cpp",
    ),
    "import": Verb(
        "llmlab.model.import_config:ImportConfig",
        "llmlab.cli.imports:folder",
        "turn a Hugging Face folder or hf:OWNER/NAME into a model folder",
    ),
    "import gguf": Verb(
        "llmlab.model.import_config:ImportGgufConfig",
        "llmlab.cli.imports:gguf",
        "turn a GGUF file into a model folder",
    ),
    "serve": Verb(
        "llmlab.serve.config:ServeConfig",
        "llmlab.cli.serve:run",
        "serve a model folder behind the OpenAI HTTP API",
    ),
    "chat": Verb(
        "llmlab.serve.config:ChatConfig",
        "llmlab.cli.chat:run",
        "talk to any OpenAI-style server from the terminal",
    ),
    "eval run": Verb(
        "llmlab.evals.config:RunConfig",
        "llmlab.cli.evals:run",
        "score a model folder or a URL on tasks, with error bars",
    ),
    "rag index": Verb(
        "llmlab.rag.config:IndexConfig",
        "llmlab.cli.rag:index",
        "index a folder of documents for retrieval",
    ),
    "rag ask": Verb(
        "llmlab.rag.config:AskConfig",
        "llmlab.cli.rag:ask",
        "answer a question from an index, with citations",
    ),
    "bench kernels": Verb(
        "llmlab.kernels.bench.config:BenchKernelsConfig",
        "llmlab.cli.bench:kernels",
        "time the kernels beside PyTorch's own, on a CPU or a GPU",
    ),
    "bench serve": Verb(
        "llmlab.serve.bench.config:BenchServeConfig",
        "llmlab.cli.bench_serve:run",
        "load OpenAI-style servers: throughput and latencies, side by side",
    ),
}
