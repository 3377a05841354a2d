"""Gradients as words, and words as gradients."""
