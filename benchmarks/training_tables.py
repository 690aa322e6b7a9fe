"""What README.md says about pretraining, from the newest rows of results/."""

from benchmarks.rows import read_rows


def training_table() -> list[str]:
    """Speed, memory and the loss on tinyshakespeare."""
    rows = {row["part"]: row for row in read_rows("train")}
    speed, memory = rows["speed"], rows["memory"]
    lines = [
        f"**Pretraining** on {speed['device']}, beside a plain PyTorch loop in float32 of the same "
        "model and update rule (`python -m benchmarks.train`):",
        "",
        "| what | llmlab | plain loop | ratio |",
        "|---|--:|--:|--:|",
    ]
    for preset in ("char", "tiny"):
        row = speed[preset]
        ours, theirs = (row[f"{name}_tok_per_s"]["median"] for name in ("llmlab", "plain"))
        lines.append(
            f"| tokens per second, {row['layers']} layers of width {row['width']}, context "
            f"{row['context']}, batch {row['batch']}, vocabulary {row['vocab']:,} | {ours:,.0f} "
            f"| {theirs:,.0f} | {row['ratio']['median']:.2f} |"
        )
    lines.append(
        f"| peak memory, {memory['layers']} layers of width {memory['width']}, context "
        f"{memory['context']:,}, batch {memory['batch']}, vocabulary {memory['vocab']:,} "
        f"| {memory['llmlab_mb']:,.0f} MB | {memory['plain_mb']:,.0f} MB | {memory['ratio']:.2f} |"
    )
    if shakespeare := rows.get("shakespeare"):
        losses = ", ".join(f"{loss:.3f}" for loss in shakespeare["val_loss"])
        lines += [
            "",
            f"tinyshakespeare by characters, {shakespeare['parameters'] / 1e6:.1f} M parameters, "
            f"180 s with `{' '.join(shakespeare['recipe'])}`: {losses} nats a character on the "
            f"held-out tenth ({len(shakespeare['val_loss'])} seeds).",
        ]
    return lines


def scaling_paragraph() -> list[str]:
    """The fitted law and what it said of the run that it had not seen."""
    row = read_rows("scaling")[-1]
    law, (found,) = row["scaling"]["constants"], row["scaling"]["held_out"]
    low, high = found["interval_95"]
    return [
        f"**Scaling law** (`python -m benchmarks.scaling_study`): fitted to "
        f"{row['scaling']['runs']} runs of {row['ladder_s'] / 60:.0f} minutes together (characters "
        f"of Python packages, context {row['context_len']}), L = "
        f"{law['E']:.2f} + {law['A']:.3g} / N^{law['alpha']:.2f} + {law['B']:.3g} / "
        f"D^{law['beta']:.2f} nats a character. For {found['size'] / 1e6:.1f} M parameters and "
        f"{found['tokens'] / 1e6:.1f} M tokens it predicts {found['predicted']:.3f} "
        f"(95 % interval {low:.3f} to {high:.3f}); measured {found['measured']:.3f}.",
        "",
        "![runs and the law](benchmarks/results/scaling_loss.svg)",
    ]


def hour_paragraph() -> list[str]:
    """An hour of pretraining."""
    row = read_rows("pretrain_hour")[-1]
    held_out, overlap = row["held_out"][-1], row["overlap"]
    return [
        f"**An hour** of pretraining on {row['device']} (`python -m benchmarks.pretrain_hour`): "
        f"{row['num_parameters'] / 1e6:.1f} M parameters, {row['tokens'] / 1e6:.1f} M tokens of "
        f"Python packages, {held_out['val_loss']:.3f} nats a token or "
        f"{held_out['bits_per_byte']:.3f} bits per byte on files held out, of which "
        f"{overlap['blocks_found'] / overlap['blocks']:.1%} stands in the training text too "
        f"({overlap['ngram_tokens']} tokens in a row). It goes on from `def read`:",
        "",
        "```text",
        row["samples"][0].rstrip(),
        "```",
    ]
