"""Boot logs of Linux and of Xen: the facts that they print, and the machine behind them."""
