"""What a KV head reads, as numbers that kernels find in device memory. The host never reads them back."""

FULL = 0  # every key up to the query
STREAMING = 1  # the sink and the local window
LISTS = 2  # the key blocks that a list names
TRIANGLE = 3  # as STREAMING, but some rows at the end of the prompt read everything
