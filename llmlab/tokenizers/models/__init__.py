"""The models of a pipeline: what turns one pre-token into ids."""
