"""Snapshots kept in the memory of other pods: who groups with whom (`groups`), what lies where (`layout`), the maths (`code`).

`groups` and `layout` need the standard library alone, `code` needs NumPy: import what you use.
"""
