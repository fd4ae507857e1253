"""Rules that every run is checked against: from its trace (`rules`), from its bytes (`image`)."""
