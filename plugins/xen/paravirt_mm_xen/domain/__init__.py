"""What the builder of a PV domain does: where it puts things, and what they collide with."""
