"""Learning a vocabulary from text, one module an algorithm."""
