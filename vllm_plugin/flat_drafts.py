"""The list of drafts that crosses from the worker to the scheduler; imported by both processes."""


class FlatDrafts(list[int]):
    """A flat list that knows how many different drafts stand among its first n tokens.

    It is pickled with that, so the scheduler, in another process, can count shared ones once.
    """

    distinct: list[int]  # one entry for each length that the list may be cut to, from 0 on
