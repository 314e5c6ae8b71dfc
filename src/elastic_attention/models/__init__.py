"""Everything that touches transformers: attaching, caches, adapters, the embedded model."""
