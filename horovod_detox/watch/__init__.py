"""Who is waited for, since when and why; and the end of a wait that leads nowhere.

A thread of each rank tells, beside all exchanges, what its process does (`beats`). Two ranks, the
keepers, hear all others and judge who holds up whom (`judge`). What they find they tell to all.
"""
