"""`headrace-bench soak`: full rate for minutes, looked at every few seconds; then a loss of Redis, or a restart.

`command` is the order of it all, `steady` and `probe` are the programs that send, `watch` looks at processes and
stores, `restart` makes what is to be recovered from, `record` has the words of what is left behind, `drawing` its plot.
"""
