"""The commands of `mlclip`: one verb a file, its flags and its `main`."""
