"""Serving routed models: the plugin for vLLM in `serving.vllm`, and a small server over transformers."""
