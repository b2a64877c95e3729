"""How much one asker may have under way with one replica: so many requests, so many bytes."""

from dataclasses import dataclass

__all__ = ["Credits"]


@dataclass
class Credits:
    """What is left of an asker's share of a replica.

    Args:
        max_requests: requests under way.
        max_bytes: bytes of the answers that are expected of them; a single request may be larger
            when nothing else is under way.
    """

    max_requests: int
    max_bytes: int
    requests: int = 0
    nbytes: int = 0

    def take(self, nbytes: int) -> bool:
        """Take a request's credit, if it is there."""
        full = self.requests >= self.max_requests
        large = self.requests > 0 and self.nbytes + nbytes > self.max_bytes
        if full or large:
            return False
        self.requests += 1
        self.nbytes += nbytes
        return True

    def give_back(self, nbytes: int) -> None:
        """Give a request's credit back."""
        self.requests -= 1
        self.nbytes -= nbytes
