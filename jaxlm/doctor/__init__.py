"""`jaxlm doctor`: whether a run could start here, before anything is compiled; one line for each check.

`check.py` runs one check in bounded time; `machine.py`, `together.py`, `folder.py` and `data.py` are the checks;
`examine.py` puts them in order. They look at things and change nothing, but for a small file that is written where the
run will write, and deleted again.
"""
