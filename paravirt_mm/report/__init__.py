"""Tables, data files and pages for people, made from figures."""
