"""Settings of properties: no deadline, since a busy machine is not a wrong result.

A test run is to say the same every time, so examples are not drawn at random. ``make search`` tries
new ones (``pytest --hypothesis-profile search``), which may find what nobody has thought of.
"""

from hypothesis import settings

settings.register_profile("search", deadline=None, print_blob=True)
settings.register_profile("specproof", settings.get_profile("search"), derandomize=True)
settings.load_profile("specproof")
