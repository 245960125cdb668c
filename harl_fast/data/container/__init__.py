"""A container file: its fields, its reader, its manifest, and whether it is sound."""
