"""What a run is about: memory maps, paging modes, CPU features, kernel image, boot state."""
