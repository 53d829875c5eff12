"""The five kinds of process: each module is one function, attach, loop, leave, over a plain loop
body.
"""
