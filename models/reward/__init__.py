"""P-Score: the learned preference reward."""
