"""Foreign files, read without running anything that is in them.

`arrays.read` reads an array file of any kind; `annotations` and `tensorflow_checkpoint` read what their names say.
"""
