"""The report card of a run, and runs side by side: what came out, on which curve, what is next."""
