"""The `command` component: one `onerec` command on a cluster (component.py) and what it does (step.py)."""
