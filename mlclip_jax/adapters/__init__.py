"""Trainable methods on stored features of images, one a file; see `methods.py` for what each declares."""
