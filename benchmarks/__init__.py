"""One file per claim of the README; each appends rows to results/."""
