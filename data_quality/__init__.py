"""Great Expectations over a day of the lake: one suite a table, in code, and the checkpoint that runs them."""

import os

# Before the library is imported anywhere in this room. 1.24.1 sends nothing (tested); earlier ones did, later ones may.
os.environ["GX_ANALYTICS_ENABLED"] = "False"

from great_expectations.expectations.metadata_types import FailureSeverity

CRITICAL, WARNING = FailureSeverity.CRITICAL, FailureSeverity.WARNING
