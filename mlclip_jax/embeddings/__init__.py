"""What backbones computed, once: files of features, and how they are made, stored and read."""
