"""What is taken from JAX's private modules, all of it, as no public name does the same.

- `cache`, `compiler`, `LRUCache`: how kept programs are written, and by which process.
- `distributed`: a service that listens for SIGTERM only from when the steps begin.
"""

from jax._src import compilation_cache as cache
from jax._src import compiler, distributed
from jax._src.lru_cache import LRUCache

__all__ = ["LRUCache", "cache", "compiler", "distributed"]
