"""The command line: verbs in, results on stdout, progress on stderr."""
