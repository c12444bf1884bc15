"""Trainable adapters: embeddings to logits, one method a file."""
