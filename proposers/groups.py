"""Groups of requests that must not learn from one another: the number of a named group."""

from hashlib import blake2b

LEAST_SECRET = 16
MOST_SECRET = 64  # bytes that blake2b takes as a key


def group_of(name: str, secret: bytes) -> int:
    """The number of a named group, 1..2^64 - 1: blake2b of the name, keyed with the secret.

    Equal names have equal numbers; two names meet by chance once in 2^64. The secret is 16 to 64
    random bytes that a process makes for itself and shows nobody: who knows another tenant's name
    still cannot compute its keys, and so cannot look for texts of their own whose contexts hash
    like the other's. What a table learned for a named group is therefore of no use to a later
    process.

    Raises
    ------
    ValueError
        For a secret of another length.
    """
    if not LEAST_SECRET <= len(secret) <= MOST_SECRET:
        raise ValueError(
            f"the secret has {len(secret)} bytes; it must have {LEAST_SECRET}..{MOST_SECRET}"
        )
    # A client's JSON may hold half of a surrogate pair, which plain UTF-8 would refuse.
    digest = blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8, key=secret).digest()
    return int.from_bytes(digest, "little") or 1
