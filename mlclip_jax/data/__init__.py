"""Images and embeddings with labels."""
