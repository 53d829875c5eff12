"""The measurements of bench/throughput.py: acting, training, both, and the limits."""

NULL = "rates.null_env:Null"
