"""Measures this machine, one module a bench; `steady` repeats until figures agree, `report` prints and keeps them."""
