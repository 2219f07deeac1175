"""Great Expectations over a day of the lake: one suite a table, in code, and the checkpoint that runs them."""

import os

# Before the library is imported anywhere in this room: it reports its use over the network unless told not to.
os.environ["GX_ANALYTICS_ENABLED"] = "False"
