"""Find lost frames by their sequence numbers, which begin at 0, ascend by one, and never repeat."""


class FrameSequence:
    """Follows the sequence numbers of one engine, from one monitor's first frame on."""

    def __init__(self) -> None:
        self.last = -1
        """The last sequence number that arrived; -1 before the first."""
        self.lost = 0
        """Sequence numbers that never arrived."""

    def arrive(self, sequence: int, acked: int) -> int | None:
        """Take the next frame.

        On the first, everything that no monitor has confirmed counts as lost. Confirmations follow with some
        delay: of frames that an earlier monitor read just before it ended, the last ones are counted although
        they were read.

        Args:
            sequence: Of the frame.
            acked: The last sequence number that the engine has had confirmed, by this monitor or one before
                it.

        Returns:
            Frames lost just before this one; ``None`` where it is not above the last one, and not to be read.
        """
        if sequence <= self.last:
            return None
        expected = self.last + 1 if self.last >= 0 else min(max(acked, -1) + 1, sequence)
        lost = sequence - expected
        self.last = sequence
        self.lost += lost
        return lost
