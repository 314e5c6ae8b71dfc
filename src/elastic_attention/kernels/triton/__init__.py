"""Backend "triton": kernels for every GPU that Triton compiles for. Needs nothing besides PyTorch's own Triton."""
