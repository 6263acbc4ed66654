"""Bytes between sidecars: snapshots and parity served, parity built, lost ranks rebuilt, peers watched.

    service   the facade that the rest of the sidecar uses
    encode    builds this pod's parity of a copy from the other members' images (deltas where little changed)
    rebuild   brings back the image of a lost rank from what the survivors hold
    parity    where parity lies: two buffers a rank, files beside the arenas
    client, server   the two ends of a connection; `wire`: what goes over it; `channel`: who may talk, encrypted or not; `idle`:
              connections that are kept from one step to the next
    holdings  what the server can hand out, verified while it is read
    probes    which pods do not answer any more

An *image* is what a rank's slot holds: the snapshot's bytes and, behind them, its manifest. Nothing here knows the group
protocol: which copy is to be protected by whom is decided elsewhere, and which slots must stay for it as well.
"""

from .place import Fault, PeerError, PeerPlace
from .rebuild import Heard
from .service import Peers

__all__ = ["Fault", "Heard", "PeerError", "PeerPlace", "Peers"]
