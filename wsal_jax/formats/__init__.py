"""Readers of foreign files, which never execute anything in them.

`arrays.read` reads array files of any kind; `annotations`, `submissions` and `tensorflow_checkpoint` read the others.
"""
