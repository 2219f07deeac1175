"""The `announce` component: the exit task of every pipeline (component.py) and what it does (step.py)."""
