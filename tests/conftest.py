"""How hypothesis draws: the same examples in every run, so that a red check is this change's doing.

`HYPOTHESIS_PROFILE=nightly python -m tests --only tests` draws afresh, and more.
"""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("dev", deadline=None)
settings.register_profile("nightly", deadline=None, max_examples=1_000, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
