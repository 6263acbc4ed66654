"""The commit and recovery protocol as a model that is explored exhaustively, state by state, for small worlds.

world      what a state is made of
worlds     the small worlds that are explored
rules      calls of the real rules of core and sidecar: nothing is decided here
memory     a pod's RAM: slots, kept steps, parity
sidecar    what a pod does when it is told something
group      the coordinator: the real `Decisions`, taken apart into values and put together again
operator   the real `plan`, and what becomes of its orders
faults     what may go wrong, while a budget lasts
pods       what happens between pods: connections, orders, blocks
model      all steps that a state allows; `scene`, `tables`: a state taken apart, and as numbers
promises   the invariants, and what they have to remember
explore    breadth first: the first way to break a promise is the shortest one
liveness   from every state, once faults have ended: is there training again, and protection?
mutations  rules made wrong on purpose: each has to be caught
script     counterexamples as text, and replayed
replay     traces of real runs against the same rules
"""
