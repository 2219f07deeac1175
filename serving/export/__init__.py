"""Export of a release's model as one program, the gate it must pass, and the program as it is served."""
