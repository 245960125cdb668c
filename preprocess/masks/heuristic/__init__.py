"""Label-free foreground from colour contrast to the border; `method` names the steps."""
