"""The made-up engine's pool: every layer keeps every token."""

from __future__ import annotations

from ...errors import UserError
from ..sizing import Pool, Sizing


class FakeSizing(Sizing):
    """Token slots of all layers."""

    @property
    def token_bytes(self) -> int:
        """KV bytes of a token."""
        return self.layer_token_bytes * len(self.model.layers)

    def available(self) -> tuple[int, int, int]:
        """Whatever it is given; it never guesses."""
        given = self.given()
        if given is None:
            raise UserError("a plan of fake without KV space", "--available-kv-gib", "give it, in GiB")
        return given

    def pool(self, available: int) -> Pool:
        """As many slots as fit."""
        slots = max(available, 0) // self.token_bytes
        return Pool(available, slots, slots, slots / self.settings.context_tokens)

    def pool_sum(self, pool: Pool) -> str:
        """The sum in words."""
        return f"{pool.available_bytes:,} B // {self.token_bytes:,} B = {pool.tokens:,} tokens"

    def at_once(self, available: int, tokens: int) -> float:
        """Requests of that length."""
        return self.pool(available).tokens / tokens

    def request_bytes(self, tokens: int) -> int:
        """KV bytes of one request."""
        return tokens * self.token_bytes

    def explains(self, printed: int, low: int, high: int) -> bool:
        """Whether the pool prints that figure."""
        return self.pool(low).tokens <= printed <= self.pool(high).tokens
