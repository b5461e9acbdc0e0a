"""Settings of every test: no deadline for properties: a busy machine is not a wrong result."""

from hypothesis import settings

settings.register_profile("specproof", deadline=None, print_blob=True)
settings.load_profile("specproof")
