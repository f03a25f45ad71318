"""The programs that `forty2 speed` measures: one file each, run by path in a process of its own.

A worker is a function `prepare(job)`. It does the work that is not measured, mostly loading, and
returns a function that does the measured work. The environment of another trainer lacks forty2, so
its worker and `__main__.py` import nothing of the package.
"""
