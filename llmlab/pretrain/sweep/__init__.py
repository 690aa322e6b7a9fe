"""Many runs of one experiment: grid and random search, ladders of sizes and budgets."""
