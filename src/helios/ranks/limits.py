"""How long ranks wait for each other, and how often they check."""

from __future__ import annotations

CHECK_PERIOD = 0.2  # Seconds between two checks by the monitor; a signal or a failure is noticed within that time.
SETTLE_PERIOD = 0.02  # Seconds between two checks while the ranks agree on where to stop.
HEARTBEAT_PERIOD = 1.0  # Seconds between two heartbeats.
SILENCE = 60.0  # Seconds without a heartbeat after which a rank is declared lost; a busy rank may be late.
ANSWER = 30.0  # Seconds within which a rank must report its position when a stop is requested.
ECHO = 3.0  # Seconds to wait for the reason why another rank is gone; longer than two heartbeats take.
GRACE = 5.0  # Seconds within which the main thread should notice a failure by itself.
BUSY_GRACES = 6  # How many of these periods a main thread gets while it computes.
BUSY_SHARE = 0.02  # A thread that uses at least this share of a core computes; one that uses less only waits.
