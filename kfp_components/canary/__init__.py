"""The `canary` component: its KFP interface (component.py) and what it does (step.py)."""
