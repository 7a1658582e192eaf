"""Memory: what this container may have, what it has, and what gives way first.

A process that goes over its container's limit is killed, with all that it has under way. Two things hold it below:

- `Room` counts the bodies that are held, and refuses the one that would be too many before it is read: whoever sends
  can fill memory faster than anybody could look. It is arithmetic, and exact.
- `Watch` looks at the container twice a second, ten times when it fills: all else grows slowly. It tells a level:

      0  normal
      1  shrink   from 80 %: the cache gives way, by half every two seconds
      2  spare    from 90 %: nothing is cached, idle connections are closed, answers close theirs
      3  shed     from 95 %: new requests are refused, with 503 and a time to come again

  A level ends five points below where it begins, so that it does not flutter. Where this process and its likes have
  less than an eighth of the limit, or it is a guest in another app's, the first is the last: the memory is somebody
  else's, and to refuse requests would not free it.

`Pressure` is both for an app. Without a limit, shares are taken of what the machine has, and nothing is watched: what
others use of it is not ours to mend.
"""

from sidecar.memory.cgroups import Bound, bound
from sidecar.memory.pressure import Pressure
from sidecar.memory.room import COUNTED_BYTES, Room, connections
from sidecar.memory.watch import SHED, SHRINK, SPARE

__all__ = ["COUNTED_BYTES", "SHED", "SHRINK", "SPARE", "Bound", "Pressure", "Room", "bound", "connections"]
