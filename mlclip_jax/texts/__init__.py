"""Labelled texts, or what stands for them."""
