"""A small server over transformers with OpenAI's two endpoints, for where vLLM is not installed."""
