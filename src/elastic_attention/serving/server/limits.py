"""What a server takes at most."""

import dataclasses
from dataclasses import dataclass

MAX_BODY_BYTES = 8 << 20
MAX_BODY_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerLimits:
    """Limits of one server.

    Attributes:
        context: prompt and answer together, tokens.
        max_new_tokens: longest answer, tokens; also what a request gets that names no length.
        max_body_bytes: largest body of a request.
        max_body_seconds: how long a client may take to send its body.
        max_requests: requests that are answered or wait at the same time; more are turned away with status 429.

    Raises:
        ValueError: a limit is not positive.
    """

    context: int
    max_new_tokens: int = 4096
    max_body_bytes: int = MAX_BODY_BYTES
    max_body_seconds: float = MAX_BODY_SECONDS
    max_requests: int = 16

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            if getattr(self, item.name) <= 0:
                raise ValueError(f"{item.name}={getattr(self, item.name)} must be positive.")
