"""The measurements of bench/throughput.py: acting, training, both together, and the limits beside them."""

NULL = "rates.null_env:Null"
