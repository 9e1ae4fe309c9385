"""What all tests share: hypothesis has no deadline, since builders are busy machines."""

from hypothesis import settings

settings.register_profile("quantile", deadline=None)
settings.load_profile("quantile")
