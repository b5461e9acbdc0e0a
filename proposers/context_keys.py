"""The key of a context: a hash of its tokens and of the group whose text it is.

Requests of different groups (tenants, say) share a table's memory, but no context: a group's number
makes the salt that its hashes begin with, so equal tokens of two groups are two keys. Group 0 is
the default one; its keys are those of a table without groups.
"""

from typing import Any

import numpy as np
from numba import njit

from proposers.noise import mix64

SALT = np.uint64(0x5350454350524F4F)


@njit(inline="always")
def salt_of(group: Any) -> Any:
    """The salt of a group, uint64.

    ``mix64`` is a bijection that maps 0 to 0: no two groups share a salt, group 0 has ``SALT``.
    """
    return SALT ^ mix64(group)


@njit(inline="always")
def salt_at(groups: Any, i: Any) -> Any:
    """The salt of ``groups[i]``, (n,) uint64; of group 0 when ``groups`` is empty."""
    return salt_of(groups[i]) if groups.shape[0] else SALT


@njit(inline="always")
def extend_key(key: Any, token: Any) -> Any:
    """The hash of a context grown by one older token."""
    return mix64(key ^ (np.uint64(token) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15))


@njit(inline="always")
def context_keys(tokens: Any, begin: Any, end: Any, order: Any, keys: Any, salt: Any) -> Any:
    """Fill ``keys[m-1]`` with the hash of the last m tokens of tokens[begin:end]; count them.

    ``salt`` is that of the text's group, :func:`salt_of`.
    """
    key = salt
    longest = min(order, end - begin)
    for m in range(longest):
        key = extend_key(key, tokens[end - 1 - m])
        keys[m] = key if key != 0 else np.uint64(1)
    return longest
