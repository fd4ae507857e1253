"""Operations on a guest's page tables: format, recordings, generators, shrinking."""
